"""Commands of the command line as text that can be copied into a shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import sys
import sysconfig
from pathlib import Path

from experiments.common.paths import short_path

SCRIPT, MODULE = "control-llm", "experiments.cli"
ZIPPED = re.compile(r"\bpython3\d+\.zip$")  # in the list of folders of every Python


def command(*words: str | Path) -> str:
    """Return `control-llm WORDS`, quoted for a shell. Paths below the working directory become relative to it."""
    return " ".join([program(), *(shlex.quote(short_path(w) if isinstance(w, Path) else w) for w in words)])


def program() -> str:
    """Return the words that start the command line: `control-llm`, or a path to it if it is not on PATH.

    If the console script is not installed: `python -m experiments.cli`, with a path to the running Python if that is
    not the one on PATH.
    """
    if script := _installed():
        return _on_path(SCRIPT, script)
    return f"{_on_path('python', sys.executable)} -m {MODULE}"


def own_python(module: str) -> list[str]:
    """Return the words that run a module of ours in another Python; its environment needs `own_modules`.

    Without -P it would look in the working directory first, where this process may not look: a `statistics.py` or
    `datasets.py` there would be run in place of the real one.
    """
    return [sys.executable, "-P", "-m", module]


def own_modules() -> dict[str, str]:
    """Return the environment in which another Python finds the modules that this one finds.

    Without the folders that every Python has of its own: programs of another version may be started from there.
    """
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {sysconfig.get_config_var("DESTSHARED"), site.getusersitepackages()}
    further = [one for one in sys.path if one not in own and not ZIPPED.search(one) and os.path.exists(one or ".")]
    return {"PYTHONPATH": os.pathsep.join(further)}


def _installed() -> str | None:
    """The console script of the running Python: the one that started it, or the one in its folder of scripts."""
    started = Path(sys.argv[0])
    if started.stem == SCRIPT and started.is_file():
        return str(started)
    return shutil.which(SCRIPT, path=sysconfig.get_path("scripts"))


def _on_path(name: str, file: str) -> str:
    """The name alone if a shell finds this file by it, else the path of the file."""
    found = shutil.which(name)
    same = found is not None and os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(file))
    return name if same else shlex.quote(short_path(file))

"""Let the disk be full at each place where a run or study writes, in turn: an audit hook refuses to open the file.

python -m tests.helpers.full_disk run study    # all places, some minutes; exit 1: there is a fault

The same root goes on after each fault, as a user's would: so each attempt gets one place further. It ends with the
words of a full disk and exit code 1, or (what only MLflow needs) well. All else is a fault, as is a root that differs
in the end from one that was never stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.console import stop
from experiments.cli.main import failure
from experiments.cli.main import main as cli
from experiments.studies.launch import run_study
from experiments.studies.load import load_study
from tests.helpers.byte_level import byte_base
from tests.helpers.damage import Outcome, in_child
from tests.helpers.damaged import without_pictures
from tests.helpers.kills import IMPORTED, Unequal, compare
from tests.helpers.small_run import small_values
from tests.helpers.tiny_study import RATE, study_values

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NAMES = {"run": "small", "study": "tiny"}  # of the experiments in MLflow


def place(path: str, root: Path) -> str:
    """Name where a file is written: its path below the root without ids, digests and steps."""
    name = re.sub(r"\.[a-z0-9_]{8}-[^/]*\.part$|(?<=uploading)\..*", ".part", os.path.relpath(path, root))
    return re.sub(r"[0-9a-f]{8,}|\d+(\.\d+)?", "*", name)


def watched(work: Callable[[], int], root: Path, log: Path, full_at: str = "") -> tuple[Outcome, list[str]]:
    """Do the work in a child, where the first file that is written at `full_at` is refused. Returns all places."""
    places, refused = log.with_suffix(".places"), list[str]()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(args[0], str) or not args[2] & WRITES:
            return
        if not os.path.abspath(args[0]).startswith(f"{root}/"):
            return
        seen = place(os.path.abspath(args[0]), root)
        os.write(handle, f"{seen}\n".encode())
        if seen == full_at and not refused:
            refused.append(seen)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

    def child() -> int:
        sys.addaudithook(hook)
        return work()

    handle = os.open(places, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        outcome = in_child(child, log)
    finally:
        os.close(handle)
    return outcome, list(dict.fromkeys(places.read_text().splitlines()))


def values_of(kind: str, base: str) -> dict[str, Any]:
    if kind == "study":
        return study_values(base, search={"rate": {**RATE, "values": [1e-3, 3e-3]}})
    values = small_values(base, training={"steps": 4, "batch_size": 2, "warmup_steps": 1, "save_every": 2})
    values["evaluation"]["kept_tasks"] = ["capitals"]
    return values


def study(file: Path, root: Path) -> int:
    """Do what `control-llm study` does, with the trials in this process, which the hook watches."""
    try:
        run_study(load_study(file), root)
    except Exception as error:
        code, message = failure(error)
        if not code:
            raise
        return stop(code, message)
    return 0


def check(kind: str, folder: Path, each: int = 1, say: Callable[[str], None] = print) -> dict[str, str]:
    """Return what is wrong, by place. each: take one place of so many."""
    file = folder / f"{kind}.yaml"
    file.write_text(json.dumps(values_of(kind, byte_base(folder / "base"))))
    whole, faults, number = folder / "whole", dict[str, str](), 0

    def work(root: Path) -> Callable[[], int]:
        return lambda: study(file, root) if kind == "study" else cli([kind, str(file), "--root", str(root)])

    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for name in IMPORTED:
            importlib.import_module(name)
        gc.freeze()
        outcome, places = watched(work(whole), whole, folder / "whole.log")
        assert outcome.code == 0, outcome.text
        root = folder / "root-0"
        for full_at in [*places[::each], ""]:
            outcome, seen = watched(work(root), root, folder / f"{len(faults)}-{number}.log", full_at)
            (folder / f"{len(faults)}-{number}.log").unlink()
            text = outcome.text[-1500:]
            if outcome.code == 0:
                with contextlib.redirect_stdout(io.StringIO()):
                    cli(["sync", str(root), "--root", str(root)])
                try:
                    compare(whole, root, NAMES[kind])
                except Unequal as error:
                    faults[full_at] = str(error)
                number += 1
                root = folder / f"root-{number}"
            elif outcome.code != 1 or "no space left" not in text.lower() or "again" not in text or "Traceback" in text:
                faults[full_at] = text
            if full_at and full_at not in seen:
                faults[full_at] = "it was not written this time"
            say(f"{full_at}: {faults.get(full_at, 'stopped' if outcome.code else 'ended well')}")
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=NAMES, metavar="KIND", help="run, study or both")
    faults: dict[str, str] = {}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    for kind in parser.parse_args(argv).kinds:
        with tempfile.TemporaryDirectory(prefix="full-") as folder:
            faults |= check(kind, Path(folder), say=lambda text: print(text, flush=True))
    print(f"{len(faults)} faults", *(f"{place}: {fault}" for place, fault in faults.items()), sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

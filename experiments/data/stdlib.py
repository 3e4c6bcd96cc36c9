"""Python source code of the running interpreter's standard library: a real corpus on every machine."""

from __future__ import annotations

import functools
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Literal

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest, text_id
from experiments.common.section import nearest
from experiments.data.items import Example, NewText, Text
from experiments.data.source import Finite

TESTS = {"test", "tests", "idle_test"}
TABLES = {"encodings", "pydoc_data", "lib2to3", "this"}  # character tables, one long page, grammar tables, a joke
HELD_OUT = 10  # one module in ten


class PythonLibrary(Finite):
    """The modules of the standard library without tests and tables; each file is a document.

    One top-level module in ten is held out with all its files, so no part of a held-out package is trained on.
    """

    source: Literal["python"] = "python"
    modules: tuple[str, ...] = Field((), description="top-level modules to take; empty: all")

    @property
    def label(self) -> str:
        return f"python {platform.python_version()} library"

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        found = _modules()
        for name in self.modules:
            if name not in found:
                raise ConfigError(
                    f"data, modules: no source of {name!r} in the standard library; {nearest(name, found)}"
                )
        return tuple(
            Text(text, group=name)
            for name in self.modules or found
            for file in found[name]
            if (text := file.read_text(encoding="utf-8", errors="replace")).strip()
        )

    def held_out(self, count: int, seed: int) -> NewText:
        """Return at most `count` files of the held-out modules; all files of these modules are kept out of training."""
        names = {example.group for example in self.examples if isinstance(example, Text)}
        if len(names) < 2:
            raise ConfigError(
                f"data, modules: {len(names)} module cannot be split into training and held-out data; name more"
            )
        order = sorted(names, key=lambda name: short_digest(f"{seed} {name}"))
        kept = order[: max(1, len(order) // HELD_OUT)]
        documents = [e.text for name in kept for e in self.examples if isinstance(e, Text) and e.group == name]
        return NewText(self.label, tuple(documents[:count]), frozenset(map(text_id, kept)))


def _modules() -> dict[str, list[Path]]:
    """Return the source files of each top-level module, all in alphabetical order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for name in sorted(sys.stdlib_module_names - TABLES - TESTS):
        files = [root / f"{name}.py"] if (root / f"{name}.py").is_file() else sorted((root / name).rglob("*.py"))
        files = [file for file in files if not TESTS & set(file.relative_to(root).parts)]
        if files:
            found[name] = files
    return found

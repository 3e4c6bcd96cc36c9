"""Find the files of a grader of the user: its own, and the modules next to it that it imports.

A grade depends on all of them, so all are in the grader's digest, and all are read again if one has changed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.hashing import file_digest

PROGRAM = ("experiments", "ctrl")  # packages of the bench: no grader's own, and importing them twice would double them
_IMPORTED: dict[Path, str] = {}  # digests of modules when this process used them first
_OF_GRADERS: weakref.WeakSet[ModuleType] = weakref.WeakSet()  # packages of their own that graders have imported


def own_files(file: Path, root: Path | None = None, package: str = "") -> list[Path]:
    """Return a file of Python, and the files below root that it imports, also through others.

    root: where its imports are looked up first; default: its folder. package: follow the imports of this one alone.
    """
    root, found = (root or file.parent).resolve(), {file.resolve(): file}
    waiting = [file]
    while waiting:
        new = [path for path in dict.fromkeys(_imports(waiting.pop(0), root, package)) if path not in found]
        found |= dict(zip(new, new, strict=True))
        waiting += new
    return list(found.values())


def installed_files(module: str) -> list[Path]:
    """Return the files of an installed module, and of the modules of its package that it imports; none if missing."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # of the package around it, which runs; to import it says what is wrong
        return []
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return []
    package = module.partition(".")[0]
    depth = module.count(".") + (Path(spec.origin).name == "__init__.py")
    return own_files(Path(spec.origin), Path(spec.origin).parents[depth], package)


def installed(module: str) -> ModuleType:
    """Import an installed module. Raises ConfigError as `check_imported` does."""
    check_imported(installed_files(module))
    return importlib.import_module(module)


def check_imported(files: Iterable[Path]) -> None:
    """Raise ConfigError for a module that was edited after this process imported it: Python keeps what it imported."""
    for file in files:
        digest = file_digest(file)
        if _IMPORTED.setdefault(file.resolve(), digest) != digest:
            raise ConfigError(f"{file} has changed since this process imported it: restart the process, or the kernel")


def load(file: Path) -> ModuleType:
    """Run a file as a module; it may import those next to it. They are read anew, whatever had their names before."""
    spec = importlib.util.spec_from_file_location(f"grader_{file.stem}", file)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module, folder = importlib.util.module_from_spec(spec), str(file.parent.resolve())
    importlib.invalidate_caches()
    with _names_free(file), _from_source():
        sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
    return module


@contextlib.contextmanager
def _from_source() -> Iterator[None]:
    """Inside the block no compiled file is read or written: of two edits in one second it may be the first."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.devnull, True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


@contextlib.contextmanager
def _names_free(file: Path) -> Iterator[None]:
    """Take modules with the names of a grader's own ones out of Python's list, and put those of others back after it.

    Another grader, a notebook or Python itself may have imported one of that name.
    """
    root, own = file.parent.resolve(), own_files(file)[1:]
    names = {path.relative_to(root).parts[0].removesuffix(".py") for path in own if path.is_relative_to(root)}
    taken = _out(names)
    try:
        yield
    finally:
        others = {name for name in names if name in taken and taken[name] not in _OF_GRADERS}
        _out(others)
        sys.modules.update({name: module for name, module in taken.items() if _top(name) in others})
        _OF_GRADERS.update(sys.modules[name] for name in names - others if name in sys.modules)


def _out(names: set[str]) -> dict[str, ModuleType]:
    """Take the modules of these packages out of Python's list, and return them."""
    return {name: sys.modules.pop(name) for name in [*sys.modules] if _top(name) in names}


def _top(name: str) -> str:
    return name.partition(".")[0]


def _imports(file: Path, root: Path, package: str) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # to import it says what is wrong
        return
    for node in ast.walk(tree):
        for folder, name in _names(node, file, root):
            top = _top(name)
            if folder != root or (top not in (*PROGRAM, *sys.builtin_module_names) and package in ("", top)):
                yield from _files_of(folder, name)


def _names(node: ast.AST, file: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the modules that a statement may import: (folder in which it is looked up, dotted name)."""
    if isinstance(node, ast.Import):
        yield from ((root, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        folder = root if not node.level else file.resolve().parents[node.level - 1]
        parts: Any = [node.module] if node.module else []
        yield from ((folder, ".".join([*parts, alias.name])) for alias in node.names)


def _files_of(folder: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module and of the packages around it, as far as they are in the folder."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:count])
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                yield path.resolve()

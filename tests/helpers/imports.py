"""Compute from the source which module of a package imports which, and find the circles among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(package: str) -> Graph:
    """Map each module of an importable package to the modules of the package that it imports.

    Counts every import statement: at module level, inside functions, under TYPE_CHECKING. `from p import name` is an
    import of `p.name` if that is a module, else of `p`. A package is its `__init__`.
    """
    spec = find_spec(package)
    assert spec is not None, f"{package} cannot be imported"
    assert spec.submodule_search_locations, f"{package} is a module, not a package"
    root = Path(spec.submodule_search_locations[0])
    files = {_module_name(package, path.relative_to(root)): path for path in root.rglob("*.py")}
    return {
        name: {m for m in _imported(name, path, set(files)) if m in files and m != name} for name, path in files.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected components)."""
    reached = {module: _reachable(graph, module) for module in graph}
    groups = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(group) for group in groups if group)


def _module_name(package: str, path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _imported(module: str, path: Path, known: set[str]) -> Iterator[str]:
    """Full names of all that a file imports: of modules where a name is one, else of the module that has the name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, module, is_package=path.name == "__init__.py")
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in known else source


def _source(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module after `from`; relative ones are resolved against the importing module."""
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    parents = parents[: len(parents) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _reachable(graph: Graph, start: str) -> set[str]:
    """Modules that can be reached over one import or more; `start` itself only through a circle."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph[module]
    return found

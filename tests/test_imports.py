"""No import circle in ctrl and experiments; rooms import downwards only; the check sees every kind of import."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.imports import Graph, circles, import_graph

PACKAGE = {
    "__init__": "from pack.a import X\n",
    "a": "X = 1\n\ndef f():\n    from pack import b\n",
    "b": "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .inner.c import Y\n",
    "inner/__init__": "",
    "inner/c": "import pack.a\nfrom .. import lone\nY = 2\n",
    "lone": "from json import loads\n",
}
KNOWN = {
    "ctrl": ("ctrl.model", {"ctrl.interpolation", "ctrl.control_model"}),
    "experiments": ("experiments.runs.run", {"experiments.runs.experiment", "experiments.common.errors"}),
}


@pytest.fixture(scope="module")
def rooms() -> list[list[str]]:
    """The layers of experiments in pyproject.toml, from top to bottom; one layer can have several rooms."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    contracts: list[dict[str, Any]] = project["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one.get("containers") == ["experiments"])
    return [layer.split(" | ") for layer in contract["layers"]]


def upward(graph: Graph, rooms: list[list[str]]) -> list[str]:
    """Imports from another room of the same layer or from one above it."""
    height = {room: -place for place, layer in enumerate(rooms) for room in layer}
    return sorted(
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if "." in module and "." in other and room_of(module) != room_of(other)
        if height[room_of(other)] >= height[room_of(module)]
    )


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("package", KNOWN)
def test_there_is_no_import_circle(package: str) -> None:
    graph = import_graph(package)
    module, imported = KNOWN[package]
    assert imported <= graph[module]  # the graph is not empty
    assert circles(graph) == []


def test_rooms_import_downwards_only(rooms: list[list[str]]) -> None:
    graph = import_graph("experiments")
    assert {room_of(module) for module in graph if "." in module} == {room for layer in rooms for room in layer}
    assert upward(graph, rooms) == []


def test_an_import_upwards_or_sideways_is_seen() -> None:
    graph = {"x.low.a": {"x.high.b", "x.low.c"}, "x.high.b": {"x.low.a", "x.side.d"}, "x": {"x.high.b"}}
    found = ["x.high.b imports x.side.d", "x.low.a imports x.high.b"]
    assert upward(graph, [["high", "side"], ["low"]]) == found


def test_every_kind_of_import_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a function, under TYPE_CHECKING, relative; a circle over three files is one group."""
    for name, text in PACKAGE.items():
        path = tmp_path / "pack" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    graph = import_graph("pack")
    assert graph == {
        "pack": {"pack.a"},
        "pack.a": {"pack.b"},
        "pack.b": {"pack.inner.c"},
        "pack.inner": set(),
        "pack.inner.c": {"pack.a", "pack.lone"},
        "pack.lone": set(),
    }
    assert circles(graph) == [["pack.a", "pack.b", "pack.inner.c"]]


def test_a_module_that_is_no_package_is_refused() -> None:
    with pytest.raises(AssertionError, match="is a module, not a package"):
        import_graph("tests.helpers.reference")

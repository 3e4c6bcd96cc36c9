"""The source of ctrl has no import circle, and the check sees every kind of import statement."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.imports import circles, import_graph

PACKAGE = {
    "__init__": "from pack.a import X\n",
    "a": "X = 1\n\ndef f():\n    from pack import b\n",
    "b": "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .inner.c import Y\n",
    "inner/__init__": "",
    "inner/c": "import pack.a\nfrom .. import lone\nY = 2\n",
    "lone": "from json import loads\n",
}


def test_ctrl_has_no_import_circle() -> None:
    graph = import_graph("ctrl")
    assert {"ctrl.interpolation", "ctrl.control_model"} <= graph["ctrl.model"]  # the graph is not empty
    assert circles(graph) == []


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

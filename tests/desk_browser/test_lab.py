"""Notebooks as their user meets them: JupyterLab in a browser, with clicks, and a run that is watched and stopped."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pytest

from experiments.common.colours import arm_colour
from tests.helpers.browser import shoot
from tests.helpers.lab import ROOT, Notebook, changed, copied_project, open_lab
from tests.helpers.small_notebooks import SMALL
from tests.helpers.small_run import tiny_base

pytestmark = pytest.mark.slow

STEPS = 150  # of notebook 01: enough for an interrupt
PLOTS = ".js-plotly-plot .main-svg"
LIVE = """() => [...document.querySelectorAll('.jp-OutputArea')].some(
  area => /running, .* at step [1-9]/.test(area.innerText) && area.querySelector('img[alt^="loss, retention"]'))"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def lab(browser: Any, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with open_lab(project, tmp_path_factory.mktemp("jupyter")) as address:
        yield address


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def opened(browser: Any, lab: str) -> Iterator[Callable[[str], Notebook]]:
    """Open notebooks, by their paths in the project. A page without an error is closed after the test."""
    pages = list[Notebook]()

    def open_one(path: str) -> Notebook:
        pages.append(Notebook(browser, lab, path))
        return pages[-1]

    yield open_one
    for notebook in pages:
        shoot(notebook.page, "last")
        notebook.page.close()


def small(project: Path, name: str, base: str, **changes: Any) -> str:
    """Write a notebook with small parameters to the project's mlruns/, which git ignores. Returns its path there."""
    root = project / "mlruns"
    values = SMALL[name] | {"base_model": base, "root": str(root)} | changes
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    notebook.metadata.pop("jupytext")  # no pair
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in values.items())
    root.mkdir(exist_ok=True)
    nbformat.write(notebook, root / f"{name}.ipynb")
    return f"mlruns/{name}.ipynb"


def saved_outputs(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_make_lab_opens_the_desk_and_leaves_the_repository_as_it_is(browser: Any, lab: str, project: Path) -> None:
    """As root too: so it is in most containers."""
    desk = Notebook(browser, lab, "")
    assert desk.page.url.endswith("/lab/tree/notebooks/00_desk.ipynb")
    desk.page.get_by_role("heading", name="The desk").wait_for()
    shoot(desk.page, "lab")
    desk.save()
    assert changed(project) == ""
    assert desk.errors == []


def test_01_is_interrupted_and_goes_on(opened: Callable[[str], Notebook], project: Path, base: str) -> None:
    name, train = "01_forgetting_in_five_minutes", 2
    notebook = opened(small(project, name, base, steps=STEPS))
    notebook.run_all()
    bar = notebook.cells.nth(train).get_by_text(re.compile(rf"\b[1-9]\d*/{STEPS}\b"))
    bar.first.wait_for()
    notebook.page.get_by_role("button", name="Interrupt the kernel").click()
    notebook.wait_for_kernel()
    shoot(notebook.page, "01-interrupted")
    print(notebook.text(train))
    notebook.run_all()
    notebook.finished()
    print(notebook.text(train))
    shoot(notebook.page, "01")
    notebook.save()
    assert notebook.errors == []


@pytest.mark.skip
def test_02_picker_and_watch(opened: Callable[[str], Notebook], project: Path, base: str) -> None:
    name = "02_ablation"
    notebook = opened(small(project, name, base, steps=20))
    notebook.run_all()
    notebook.finished()
    notebook.cells.nth(4).scroll_into_view_if_needed()
    shoot(notebook.page, "02")
    for n in range(notebook.cells.count()):
        notebook.cells.nth(n).scroll_into_view_if_needed()
        shoot(notebook.page, f"02-{n:02d}")
        print(n, notebook.text(n)[:1500])
    assert notebook.errors == []

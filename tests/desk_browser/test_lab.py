"""Notebooks as their user meets them: JupyterLab in a browser, with clicks, and a run that is watched and stopped."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from experiments.common.colours import arm_colour
from experiments.desk.live import Follower
from tests.helpers.browser import shoot
from tests.helpers.lab import ROOT, Notebook, changed, copied_project, open_lab
from tests.helpers.small_notebooks import SMALL
from tests.helpers.small_run import tiny_base

pytestmark = pytest.mark.slow

STEPS = 300  # of notebook 01: enough for an interrupt
PLOTS = ".js-plotly-plot .main-svg"
STOPPED = "stopped; what is recorded is kept, and the same call goes on from the last checkpoint"
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
    import nbformat  # takes seconds, in each process of the tests

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
    """The interrupt is a click on the square; before it there is no checkpoint. Its cell then says so in a line."""
    name, train = "01_forgetting_in_five_minutes", 3
    notebook = opened(small(project, name, base, steps=STEPS, live=False))
    notebook.run_all()
    run = begun(project / "mlruns", "notebook-01")
    wait_until(lambda: run.look().arms[0].step > 2)
    notebook.page.get_by_title("Interrupt the kernel").first.click()
    wait_until(lambda: run.look().overview.status == "stopped")
    notebook.wait_for_kernel()
    said = notebook.text(train).split("full 0.0001\n")[1]
    assert sorted(filter(None, said.splitlines()))[-1:] == [STOPPED]  # the note that it stops may come late
    assert len(said.split("\n")) <= 6, said  # no traceback
    stopped_at = run.look().arms[0].step
    assert stopped_at < 2 * STEPS // 3
    notebook.cells.nth(train).scroll_into_view_if_needed()
    shoot(notebook.page, "01-interrupted")

    notebook.run_all()
    notebook.finished()
    assert f"full 0.0001: continues from checkpoint-{stopped_at}\n" in notebook.text(train)
    assert notebook.text(train).count("retention") == 2
    assert "control" in notebook.text(train + 1)  # the table
    picture = notebook.cells.nth(train + 2).locator("img")
    assert picture.evaluate("one => one.naturalWidth") > 500
    assert notebook.cells.nth(train + 4).locator("select").count() == 3
    lost = notebook.cells.nth(train + 4).locator("tbody tr:visible")
    before = lost.count()
    notebook.cells.nth(train + 4).locator("select").first.select_option("control-0.001")
    assert 0 < lost.count() < before
    shoot(notebook.page, "01")
    assert notebook.errors == []


def test_an_arm_is_picked_by_clicks_run_and_watched_in_02(
    opened: Callable[[str], Notebook], project: Path, base: str
) -> None:
    """The arm trains in a process of its own, and `watch` draws its loss before that has ended."""
    notebook = opened(small(project, "02_ablation", base, steps=STEPS // 10))
    notebook.run_all()
    notebook.finished()
    buttons = notebook.cells.nth(3)
    buttons.get_by_label("name").fill("mine")
    buttons.get_by_label("interpolation").select_option("slerp")
    buttons.get_by_label("layers").fill("1")
    buttons.get_by_label("rate").fill("0.01")  # a shade that no other arm has
    buttons.get_by_role("button", name="Add").click()
    buttons.get_by_text(
        ">>> picker.add('mine', method='control', rate=0.01, layers=1, interpolation='slerp')"
    ).wait_for()
    row = buttons.locator("tr", has_text="mine")
    assert row.inner_text().split()[-1] == "new"
    shoot(notebook.page, "02-picked")

    buttons.get_by_role("button", name="Run").click()
    buttons.get_by_text("to follow it, in another cell: await watch_async('notebook-02-").wait_for()
    code = "from experiments import watch_async\nawait watch_async(picker.folder, root, every=0.2)"
    watched = notebook.add_cell(code)
    notebook.page.wait_for_function(LIVE, timeout=120_000)
    shoot(notebook.page, "02-watched")
    picture, colour = notebook.cells.nth(watched).locator("img"), arm_colour("control", 1e-2)
    wait_until(lambda: coloured(picture.get_attribute("src"), colour) > 20)
    notebook.finished()
    notebook.cells.nth(watched).scroll_into_view_if_needed()
    shoot(notebook.page, "02")
    assert "finished, 7 of 7 arms done" in notebook.text(watched)
    assert notebook.cells.nth(watched).locator("img").count() == 1
    assert notebook.cells.nth(watched).locator(".jp-OutputArea button:visible").count() == 0  # Stop
    buttons.get_by_role("button", name="Refresh").click()
    buttons.locator("tr", has_text="mine").get_by_text("finished").wait_for()
    assert notebook.errors == []


def test_the_button_stops_a_watched_run_and_the_same_cell_goes_on(
    opened: Callable[[str], Notebook], project: Path, base: str
) -> None:
    """The kernel is busy with the watching when the button is clicked."""
    train = 2
    notebook = opened(small(project, "01_forgetting_in_five_minutes", base, steps=STEPS + 1, live=True))
    notebook.run_all()
    notebook.page.wait_for_function(LIVE, timeout=120_000)
    shoot(notebook.page, "01-live")
    notebook.page.get_by_role("button", name="Stop the run").click()
    wait_until(lambda: "stopped, with a checkpoint; the same cell goes on from there" in notebook.text(train))
    said = notebook.text(train)
    assert re.search(r"notebook-01-\w+: stopped, \d of 2 arms done", said)
    assert "Traceback" not in said
    shoot(notebook.page, "01-stopped")

    notebook.run_all()
    notebook.finished()
    log = next(path for path in (project / "mlruns" / "started").glob("*.log") if path.stem in said)
    assert "continues from checkpoint-" in log.read_text()
    assert "finished, 2 of 2 arms done" in notebook.text(train)
    assert notebook.errors == []


def begun(root: Path, name: str) -> Follower:
    """Wait until a run has its config, and follow it."""
    wait_until(lambda: bool(list(root.glob(f"runs/{name}-*/config.yaml"))))
    return Follower(name, root)


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def coloured(picture: str, colour: str) -> int:
    """Count the points of a PNG in an address of data: that have a colour."""
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture.partition(",")[2])))[..., :3] * 255
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=-1) < 3).sum())

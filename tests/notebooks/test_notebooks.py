"""Notebooks: pairs in step, nothing reusable defined, small, and they run from top to bottom."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.runs.run import run_experiment
from tests.helpers.small_notebooks import SMALL
from tests.helpers.small_run import small_config, tiny_base

DESK = "00_desk"  # it shows what the others made, so it is run after them
FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"), key=lambda path: (path.stem == DESK, path))
WITHOUT_RUNS = ("06_expand_by_hand",)  # they use the library alone
READS = (DESK, "04_inside")  # they show a run that is there; 04 makes it if it is not
POSTHOC = ("02_ablation",)  # a second Run All finds the results of operations next to the arms


def name(path: Path) -> str:
    return path.stem


@pytest.mark.slow  # importing jupytext takes seconds, in each process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_pair_is_in_step(path: Path) -> None:
    import jupytext

    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_defines_nothing_reusable(path: Path) -> None:
    tree = ast.parse(path.with_suffix(".py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_arms_are_compared_by_name(path: Path) -> None:
    """A whole run folder has the results of post-hoc operations too: a second Run All would compare them as arms."""
    for call in re.findall(r"read_runs\((.*)\)", path.with_suffix(".py").read_text()):
        assert re.search(r"folder\}:", call), call


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_saving_it_would_change_nothing(path: Path) -> None:
    """Jupyter saves no version of Python (notebooks/config), jupytext none of its own; tests/desk_browser saves one."""
    head = json.loads(path.read_text())["metadata"]
    assert "language_info" not in head
    assert head["jupytext"]["notebook_metadata_filter"] == "-jupytext.text_representation"
    assert "notebook_metadata_filter: -jupytext.text_representation" in path.with_suffix(".py").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_committed_outputs_are_a_report(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|work)/", text), "an output holds a path of somebody's machine"
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert "widget-view" not in text, "a widget needs a kernel: in a saved notebook it is an error message"
    assert "widgets" not in json.loads(text)["metadata"]
    assert any(output["output_type"] == "display_data" for c in cells for output in c["outputs"])
    assert not any(output["output_type"] == "error" for c in cells for output in c["outputs"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, as a user's is: the base model is measured once."""
    return tmp_path_factory.mktemp("notebooks") / "mlruns"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_runs(path: Path, root: Path, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import papermill

    from tests.helpers.forked_kernel import fork_kernels

    fork_kernels(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the model is tiny, and another process of tests has the other core
    before = set(root.glob("runs/*"))
    if path.stem == DESK and not before:  # this test alone
        run_experiment(small_config(small), root)
    parameters = dict(SMALL[path.stem])
    # three small layers; test_real_model.py has the shipped model
    begun = sorted(arms.parent.name for arms in root.glob("runs/*/arms") if (arms.parent / "config.yaml").is_file())
    parameters |= {"shown": begun[0]} if path.stem == DESK else {"base_model": small}
    parameters |= {} if path.stem in WITHOUT_RUNS else {"root": str(root)}
    execute = functools.partial(
        papermill.execute_notebook, path, parameters=parameters, cwd=path.parent, progress_bar=False
    )
    executed = execute(tmp_path / path.name, kernel_name="python3")
    text = json.dumps(executed)
    assert "image/png" in text
    if path.stem not in WITHOUT_RUNS:
        assert "retention" in text
        assert path.stem in READS or set(root.glob("runs/*")) - before
    if path.stem in POSTHOC:
        again = execute(tmp_path / f"again-{path.name}", kernel_name="python3")
        assert tables(executed)
        assert tables(again) == tables(executed)


def tables(notebook: Any) -> list[dict[str, Any]]:
    """Return the tables of figures that the cells of an executed notebook show, not those of states."""
    shown = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [{"text/html": data["text/html"]} for data in shown if "retention" in data.get("text/html", "")]


def test_there_are_notebooks_and_each_has_small_values() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)

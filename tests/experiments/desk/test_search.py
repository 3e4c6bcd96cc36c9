"""A study in a notebook: its rows, its front with names, and the run of a trial."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError, StudyError
from experiments.common.files import write_text
from experiments.common.yaml_values import dump_yaml
from experiments.desk.explore import PLOTLY
from experiments.desk.listing import Opened, open_result
from experiments.desk.search import StudyView
from experiments.studies.trial_results import result_of
from tests.helpers.planted_study import synthetic_store
from tests.helpers.run_folders import make_run

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
TRUTH = {"full": (0.62, 0.40), "lerp8": (0.57, 0.78)}
BOTH = [{"figure": "gain", "direction": "maximize"}, {"figure": "retention", "direction": "maximize"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two arms at three rates whose second trial failed, as its folder and storage are."""
    root = tmp_path_factory.mktemp("search")
    store = synthetic_store(root, TRUTH, name="toy", objectives=BOTH, question="Which <arm>?")
    write_text(root / "studies" / "toy" / "study.yaml", dump_yaml(store.config.to_dict()))
    return root


def test_a_row_for_each_trial_and_a_star_on_the_front(root: Path) -> None:
    view = StudyView("toy", root)
    rows = [dict(zip(view.table.head, row, strict=False)) for row in view.table.rows]
    assert len(rows) == len(view.trials) == 6
    starred = [int(str(row["trial"]).split()[0]) for row in rows if str(row["trial"]).endswith("*")]
    assert starred == sorted(view.store.front())
    assert {str(row["state"]) for row in rows} == {"complete", "failed"}
    assert {row["arm"] for row in rows} == set(TRUTH)
    page = view._repr_html_()
    assert "Which &lt;arm&gt;?" in page
    assert "6 trials, 5 complete" in page


def test_trials_that_break_a_constraint_have_a_cross(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a higher gain than those on the front had no star, without a word."""
    view = StudyView("toy", root)
    assert "x: breaks" not in view._repr_html_()
    first, *rest = view.trials
    trials = [dataclasses.replace(first, feasible=False), *rest]
    monkeypatch.setattr(StudyView, "trials", trials)
    monkeypatch.setattr(view.store, "front", lambda: [])
    assert [row[0] for row in view.table.rows] == ["0 x", *(str(trial.number) for trial in rest)]
    assert "x: breaks a constraint. Intervals" in view._repr_html_()


def test_values_have_the_names_of_the_figures_that_were_measured(root: Path) -> None:
    """The file in the study's folder may have been edited for another study since."""
    file = root / "studies" / "toy" / "study.yaml"
    before = file.read_text()
    write_text(file, before.replace("figure: retention", "figure: kept_accuracy"))
    try:
        axis = StudyView("toy", root).front()._repr_mimebundle_()[0][PLOTLY]["layout"]["yaxis"]["title"]["text"]
    finally:
        write_text(file, before)
    assert "retention" in axis


def test_a_point_of_the_front_has_the_trials_picks_and_values(root: Path) -> None:
    view = StudyView("toy", root)
    page = view.front()._repr_mimebundle_()[0][PLOTLY]
    text = [text for trace in page["data"] for text in trace["text"]]
    values = [tuple(pair) for trace in page["data"] for pair in zip(trace["x"], trace["y"], strict=True)]
    assert sorted(values) == sorted(tuple(trial.values) for trial in view.trials if trial.values)
    assert all(one.startswith("trial ") and "<br>arm: " in one and "<br>retention: " in one for one in text)
    rests = "n: 120 new, 120 kept, 2 replies of the base; 1 seed; no intervals; shares, where no unit is named"
    assert page["layout"]["title"]["text"] == f"5 trials<br><sub>{rests}</sub>"
    json.dumps(page)
    importances = view.importances()
    assert importances is not None
    assert importances._repr_mimebundle_()[0]["image/png"]


def test_a_trial_leads_to_its_run(root: Path) -> None:
    view = StudyView("toy", root)
    assert view.run(0) == root / "runs" / "r0"
    assert view.words(0).startswith("trial 0, ")
    assert "runs/r0" in view.words(0)
    with pytest.raises(StudyError, match="trial 1 has no run; those that have: 0, 2, 3, 4, 5"):
        view.trial(1)
    with pytest.raises(StudyError, match="trial 9 has no run"):
        view.answers(9)


def test_figures_of_several_seeds_are_means(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point of the front is a mean over seeds, and its words must not be those of the first seed."""
    view = StudyView("toy", root)
    first, other = view.trial(0), view.trial(2)
    both = dataclasses.replace(first, runs=[*first.runs, *other.runs])
    monkeypatch.setattr(view.store, "trials", lambda: [both])
    view.study = view.study.model_copy(update={"seeds": (0, 1)})
    gains = [result_of(run).scorecard["gain"].value for run in both.runs]
    said = f"gain {sum(gains) / 2:+.2f} [".replace("+0.", "+.")
    assert said in view.words(0)
    assert any(str(cell).startswith(said.removeprefix("gain ")) for cell in view.table.rows[0])
    assert "of questions and the spread of 2 seeds, of which figures are means" in view._repr_html_()


def test_a_study_is_opened_with_its_front(root: Path) -> None:
    opened = open_result("toy", root)
    assert isinstance(opened, Opened)
    kinds = [type(part).__name__ for part in opened.parts]
    assert kinds == ["Html", "StudyView", "Picture", "Html"]


def test_what_a_study_does_not_have_is_said(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": (0.6, 0.4)}, name="one", budget={"trials": 1})
    write_text(tmp_path / "studies" / "one" / "study.yaml", dump_yaml(store.config.to_dict()))
    view = StudyView("one", tmp_path)
    assert view.importances() is None
    with pytest.raises(StudyError, match="one has one objective, so no front"):
        view.front()
    make_run(tmp_path)
    with pytest.raises(ConfigError, match="demo-0123abcd is no study: open it with open_result"):
        StudyView("demo", tmp_path)

"""What the arms of a study are called: each once, and its learning rate once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.reporting.summary import summary
from experiments.reporting.tables import arms_table
from experiments.reporting.text import label
from experiments.studies.report.plots import trajectory_figure
from experiments.studies.selection import ReportRow, arm_name, choose
from experiments.studies.trials import Trial
from tests.experiments.studies.toy import toy_study
from tests.helpers.studies import TABLE5, synthetic_store

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
TWO = {name: TABLE5[name] for name in ("full", "lerp8")}


@pytest.fixture
def arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ReportRow]:
    """Of a study whose rates all stay rows, as `baselines`."""
    monkeypatch.setattr("tests.helpers.studies.FAILS", None)
    store = synthetic_store(tmp_path, TWO, report={})
    trials = store.trials()
    again = replace(trials[0], number=6)  # the same picks, as a sampler may draw them
    return choose(store.config, [*trials, again], tmp_path)


def test_a_searched_learning_rate_is_said_once(arms: list[ReportRow]) -> None:
    names = ["full 2", "full 3", "lerp8 1", "lerp8 2", "lerp8 3"]
    assert [arm.name for arm in arms[1:6]] == names
    assert [label(arm.result) for arm in arms[1:6]] == names
    assert [arm.result.arm for arm in arms[1:6]] == ["full"] * 2 + ["lerp8"] * 3
    twice = ["full (trial 0) 1", "full (trial 6) 1"]
    assert [arm.name for arm in (arms[0], arms[6])] == [label(arm.result) for arm in (arms[0], arms[6])] == twice
    said = " ".join(summary([arm.result for arm in arms])) + arms_table([arm.result for arm in arms]).markdown()
    assert "lerp8 1 " in said
    assert "rate=" not in said
    legend = trajectory_figure(arms[1:6]).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
    ("dimension", "picks", "name"),
    [
        ({"path": "arms.0.learning_rates", "values": [[1e-3], [3e-4]]}, "[0.0003]", "base 3e-4"),
        ({"path": "arms.0.learning_rates.0", "values": [1e-3, 3e-4]}, 3e-4, "base 3e-4"),
        ({"path": "training.weight_decay", "values": [0.0, 3e-4]}, 3e-4, "rate=0.0003"),
    ],
)
def test_what_counts_as_a_learning_rate(dimension: dict[str, Any], picks: Any, name: str) -> None:
    study = toy_study(search={"rate": {"kind": "choice", **dimension}})
    result = {"arm": "base", "method": "full", "learning_rate": 3e-4, "status": "finished"}
    runs = [{"result": {**result, "scorecard": {}, "trajectory": []}}]
    trial = Trial(0, "complete", {"rate": picks}, [0.0], "", 1, 0.0, True, runs)
    assert arm_name(study, trial) == name
    assert arm_name(study, trial, "rate") == "base"

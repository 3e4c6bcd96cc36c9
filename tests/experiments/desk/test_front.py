"""A click on a trial of the front shows its run and its flips; the page needs neither widgets nor a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.desk import front
from experiments.desk.answers import Answers
from experiments.desk.front import ClickedFront
from experiments.reporting.answers import Turned
from experiments.studies.config import Objective
from experiments.studies.trials import Trial

OBJECTIVES = [Objective.model_validate({"figure": name, "direction": "maximize"}) for name in ("gain", "retention")]
RESULT = {"arm": "a", "method": "control", "learning_rate": 1e-3, "status": "finished", "trajectory": [],
          "scorecard": {}}  # fmt: skip
RUNS = [{"seed": 0, "folder": "runs/x", "result": RESULT}]


def view(folder: Path, *values: list[float]) -> Any:
    trials = [Trial(i, "complete", {"layers": i}, v, "", 1, 1.0, True, RUNS) for i, v in enumerate(values)]
    study = SimpleNamespace(objectives=OBJECTIVES, seeds=(0,), run_config=lambda *_: SimpleNamespace(to_dict=dict))
    return SimpleNamespace(
        trials=trials, study=study, root=folder, store=SimpleNamespace(front=lambda: [1]),
        words=lambda number: f"trial {number}: <gain>", run=lambda number: folder,
    )  # fmt: skip


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    turned = Turned("sums", "1 + 1?", "2", "3", "2", 1.0)
    monkeypatch.setattr(front, "answers", lambda *_, count: Answers({"a": [("lost", turned), ("kept", turned)]}, count))
    (tmp_path / "report.html").write_text("")
    return ClickedFront(view(tmp_path, [0.1, 0.9], [0.5, 0.8]))._repr_html_()


def test_each_trial_is_a_button_and_has_a_panel_of_which_one_is_shown(page: str) -> None:
    assert re.findall(r'<button data-trial="(\d)"', page) == ["0", "1"]
    assert re.findall(r'class="panel" data-trial="(\d)"( hidden)?', page) == [("0", " hidden"), ("1", "")]
    assert page.count("report of its run") == 2
    assert page.count('<td data-title="answer">lost') == 2
    assert ">kept<" not in page  # flips alone
    assert "&lt;gain&gt;" in page
    assert "<gain>" not in page


def test_the_buttons_are_where_the_points_are(page: str) -> None:
    places = [tuple(map(float, found)) for found in re.findall(r"left: ([\d.]+)%; top: ([\d.]+)%", page)]
    (left, top), (right, low) = places
    assert 5 < left < right < 95  # the second gains more
    assert 3 < top < low < 90  # and keeps less

"""Figures that other code computes: their rows name what that code returns."""

from __future__ import annotations

from experiments.evaluation.similarity import METRICS
from experiments.records import Record
from experiments.scorecard import stream
from experiments.scorecard.figures_elsewhere import ALIGNMENT, COSTS, ROWS, STREAM


def test_a_stream_has_the_figures_of_its_rows() -> None:
    stages = [[Record("new", task, "generate", "0", correct=1) for task in ("a", "b")]] * 3
    assert set(stream(stages, ("a", "b"), 100)) == {row.name for row in STREAM}


def test_each_metric_of_alignment_has_a_row() -> None:
    assert {row.name for row in ALIGNMENT} == {f"alignment_{name}" for name in (*METRICS, "update")}


def test_a_cost_is_not_drawn_from_answers() -> None:
    assert all(row.name.startswith("cost/") and row.draw is None for row in COSTS)
    assert len({row.name for row in ROWS}) == len(ROWS)

"""Trajectories of a study: they end at the figures of the table, and show the gain of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.records import Estimate
from experiments.scorecard import scorecard
from experiments.studies.queue import Store
from experiments.studies.report.plots import trajectory_figure
from experiments.studies.selection import choose
from experiments.studies.trial_results import record_files
from tests.helpers.planted_study import odd

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_the_trajectory_ends_at_the_figures_of_the_table(some: tuple[Store, Path]) -> None:
    """Both are of the items that did not choose: the picture must not be flattered by the choice."""
    store, root = some
    for arm in choose(store.config, store.trials(), root):
        assert [point["step"] for point in arm.result.trajectory] == [0, 20, 40]
        assert arm.result.trajectory[-1]["gain"] == arm.result.scorecard["gain"]
        base, middle = record_files(arm.runs[0], root, 20)
        expected = scorecard(odd(base), odd(middle), 100)["retention"].value
        assert arm.result.trajectory[1]["retention"].value == pytest.approx(expected)
        assert arm.result.trajectory[0]["gain"].value == 0


def test_the_gain_of_texts_is_drawn(some: tuple[Store, Path]) -> None:
    store, root = some
    arm = choose(store.config, store.trials(), root)[0]
    points = [{"step": p["step"], "new_nll_drop": Estimate(0.1 * p["step"])} for p in arm.result.trajectory]
    figure = trajectory_figure([replace(arm, result=replace(arm.result, trajectory=points))], "new_nll_drop")
    assert figure.axes[0].get_title(loc="left").startswith("gain, nats: negative log-likelihood of the new texts")
    assert list(figure.axes[0].lines[-1].get_ydata()) == pytest.approx([0, 2, 4])
    assert len(figure.legends) == 1

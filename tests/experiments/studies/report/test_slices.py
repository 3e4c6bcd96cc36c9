"""Trials by dimension: numbers in their order, on a log axis over a decade or more."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.reporting.page import image_bytes
from experiments.studies.config import Objective
from experiments.studies.report.slices import slice_figures
from experiments.studies.trials import Trial
from tests.helpers.planted_study import GAIN

KL = Objective.model_validate({"figure": "kl", "direction": "minimize"})


def trials(*picks: dict[str, Any], feasible: bool = True) -> list[Trial]:
    values = [[0.1 * (i + 1), 0.5] for i in range(len(picks))]
    return [Trial(i, "complete", one, values[i], "", 1, 1.0, feasible) for i, one in enumerate(picks)]


def test_a_picture_per_objective_with_a_panel_per_dimension() -> None:
    made = trials({"interpolation": "lerp", "data.replay": 0.1}, {"interpolation": "dlerp", "data.replay": 0.0})
    drawn = slice_figures(made, (GAIN, KL))
    assert [objective.figure for objective, _ in drawn] == ["gain", "kl"]
    words, replay = drawn[1][1].axes
    assert (words.get_xlabel(), replay.get_xlabel()) == ("interpolation", "replay")
    assert words.get_ylabel() == "kl, nats per token\n(lower is better)"
    assert [text.get_text() for text in words.get_xticklabels()] == ["lerp", "dlerp"]
    assert [line.get_xydata().tolist()[0] for line in drawn[0][1].axes[1].lines] == [[0.1, 0.1], [0.0, 0.2]]
    assert drawn[0][1].get_supxlabel().startswith("2 trials; 1 seed")


@pytest.mark.parametrize(("rates", "scale"), [((1e-3, 3e-4, 1e-4), "log"), ((4, 8, 16), "linear"), ((0, 8), "linear")])
def test_numbers_that_were_listed_are_sorted(rates: tuple[float, ...], scale: str) -> None:
    ((_, figure),) = slice_figures(trials(*({"rate": rate} for rate in rates)), (GAIN,))
    axes = figure.axes[0]
    assert axes.get_xscale() == scale
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"{rate:.3g}" for rate in sorted(rates)]
    places = [line.get_xdata()[0] for line in axes.lines]  # type: ignore[index]
    assert places == pytest.approx(rates)


def test_names_with_dollar_signs_are_no_formulas_and_constraints_are_crosses() -> None:
    ((_, figure),) = slice_figures(trials({"arm": "$x^$"}, {"arm": "$x$"}, feasible=False), (GAIN,))
    assert image_bytes(figure, "png")
    assert [line.get_marker() for line in figure.axes[0].lines] == ["x", "x"]
    assert "crosses" in figure.get_supxlabel()


def test_one_trial_makes_no_picture() -> None:
    assert slice_figures(trials({"rate": 1.0}), (GAIN,)) == []

"""Optuna's own pictures, restyled: slices and progress."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot

from experiments.reporting.page import image_bytes
from experiments.studies.config import Objective
from experiments.studies.report.optuna_plots import progress_figure, slice_figures
from tests.helpers.planted_study import GAIN

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
KL = Objective.model_validate({"figure": "kl", "direction": "minimize"})
POINTS = ((0.1, 0.5, "lerp"), (0.4, 0.9, "slerp"), (0.2, 0.3, "dlerp"))  # gain, KL, interpolation


def study(*objectives: Objective) -> optuna.Study:
    found = optuna.create_study(directions=[o.direction for o in objectives])
    space = {
        "interpolation": optuna.distributions.CategoricalDistribution(["lerp", "slerp", "dlerp"]),
        "data.replay": optuna.distributions.FloatDistribution(0, 1),
    }
    for i, (gain, kl, name) in enumerate(POINTS):
        params = {"interpolation": name, "data.replay": 0.1 * i}
        values = {"gain": gain, "kl": kl}
        found.add_trial(
            optuna.create_trial(
                params=params, distributions=space, values=[values[objective.figure] for objective in objectives]
            )
        )
    return found


def test_a_slice_per_objective_with_a_panel_per_dimension() -> None:
    settings, shown = dict(matplotlib.rcParams), pyplot.get_fignums()
    drawn = slice_figures(study(GAIN, KL), (GAIN, KL))
    assert dict(matplotlib.rcParams) == settings  # Optuna sets a style of its own for the whole process
    assert pyplot.get_fignums() == shown
    assert [objective.figure for objective, _ in drawn] == ["gain", "kl"]
    replay, interpolation, *_ = drawn[1][1].axes
    assert (replay.get_xlabel(), interpolation.get_xlabel()) == ("replay", "interpolation")
    assert replay.get_ylabel() == "kl\n(lower is better)"
    assert [label.get_text() for label in interpolation.get_xticklabels()] == ["lerp", "slerp", "dlerp"]
    points = np.asarray(replay.collections[0].get_offsets())
    assert points == pytest.approx(np.array([[0.1 * i, kl] for i, (_, kl, _) in enumerate(POINTS)]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_dimensions_is_drawn(count: int) -> None:
    found = optuna.create_study(direction="maximize")
    space = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(count)}
    for value in (0.2, 0.4, 0.9):
        params = dict.fromkeys(space, value)
        found.add_trial(optuna.create_trial(params=params, distributions=space, values=[value]))
    ((_, figure),) = slice_figures(found, (GAIN,))
    assert image_bytes(figure, "png")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == count + 1  # the scale of the colours
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_names_with_dollar_signs_and_scales_in_decades_have_no_formula() -> None:
    found = optuna.create_study(direction="maximize")
    names = ["$x^$", "$x$"]
    space: dict[str, optuna.distributions.BaseDistribution] = {
        "arm": optuna.distributions.CategoricalDistribution(names),
        "$rate$": optuna.distributions.FloatDistribution(1e-6, 1, log=True),
    }
    for rate, value in ((1e-5, 0.2), (1e-3, 0.4), (0.1, 0.9)):
        params = {"arm": names[value > 0.3], "$rate$": rate}
        found.add_trial(optuna.create_trial(params=params, distributions=space, values=[value]))
    ((_, figure),) = slice_figures(found, (GAIN,))
    assert image_bytes(figure, "png")
    labels = [text.get_text() for axes in figure.axes for text in axes.get_xticklabels()]
    assert set(names) <= set(labels)
    assert {"1e-05", "1e-03"} <= {label.replace("\N{MINUS SIGN}", "-") for label in labels}
    assert not [label for label in labels if "mathdefault" in label]


def test_progress_of_one_objective_is_the_best_so_far() -> None:
    figure = progress_figure(study(GAIN), (GAIN,))
    assert figure is not None
    (best,) = figure.axes[0].get_lines()
    assert list(best.get_ydata()) == pytest.approx([0.1, 0.4, 0.4])


def test_progress_of_two_objectives_is_the_area_that_the_front_dominates() -> None:
    """Restated by hand from the worst of each, gain .1 and KL .9: (.1,.5), then (.4,.9), then (.2,.3) which is
    .1 x .6 above it."""
    figure = progress_figure(study(GAIN, KL), (GAIN, KL))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_ydata()) == pytest.approx([0, 0, 0.06])
    assert "gain 0.1, kl 0.9" in figure.axes[0].get_ylabel()

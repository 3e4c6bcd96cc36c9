"""Optuna's own picture, restyled: the progress."""

from __future__ import annotations

import matplotlib
import optuna
import pytest
from matplotlib import pyplot

from experiments.studies.config import Objective
from experiments.studies.report.optuna_plots import progress_figure
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


def test_optuna_leaves_no_style_and_no_open_figure() -> None:
    settings, shown = dict(matplotlib.rcParams), pyplot.get_fignums()
    assert progress_figure(study(GAIN), (GAIN,))
    assert dict(matplotlib.rcParams) == settings  # Optuna sets a style of its own for the whole process
    assert pyplot.get_fignums() == shown


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

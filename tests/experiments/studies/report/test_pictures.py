"""A study report's pictures: Optuna's own, restyled, and hidden states where the study measured them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot

from experiments.records import Record, read_records, write_records
from experiments.studies.config import Objective
from experiments.studies.report.optuna_plots import progress_figure, slice_figures
from experiments.studies.report.pictures import MOST, pictures
from experiments.studies.report.write import _at_once
from experiments.studies.selection import choose, record_files
from tests.helpers.studies import TABLE5, synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
GAIN = Objective.model_validate({"figure": "gain", "direction": "maximize"})
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


def test_one_trial_is_no_picture() -> None:
    empty = optuna.create_study(direction="maximize")
    assert slice_figures(empty, (GAIN,)) == []
    assert progress_figure(empty, (GAIN,)) is None


def test_hidden_states_are_drawn_where_the_study_measured_them(tmp_path: Path) -> None:
    truth = {name: TABLE5[name] for name in ("full", "lerp8")}
    store = synthetic_store(tmp_path, truth)
    arms = choose(store.config, store.trials(), tmp_path)
    names = [name for name, *_ in pictures(store, arms, store.trials(), tmp_path)]
    assert names == ["forgetting", "trajectories", "importances", "slice-0"]  # a grid: no progress; one objective
    for i, arm in enumerate(arms):
        file = record_files(arm.runs[0], tmp_path)[1]
        cells = [Record("alignment", "cosine", "base", f"layer {k}", value=1 - 0.1 * i * k) for k in range(3)]
        write_records(file, [*read_records(file), *cells])
    *_, (name, _, text, figure) = pictures(store, arms, store.trials(), tmp_path)
    assert (name, "seed 0" in text) == ("alignment", True)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["full", "lerp8"]
    (cells, *_) = figure.axes[0].collections
    assert np.asarray(cells.get_array()) == pytest.approx(np.array([[1, 1, 1], [1, 0.9, 0.8]]))
    many = [arms[0]] * (MOST + 1)
    assert all(f"The first {MOST} of {MOST + 1} arms" in pictures(store, many, [], tmp_path)[i][2] for i in (0, 1, -1))


def test_many_trials_are_called_by_their_numbers_in_pictures(tmp_path: Path) -> None:
    decays = {"kind": "choice", "path": "training.weight_decay", "values": [0.01 * i for i in range(10)]}
    store = synthetic_store(tmp_path, {"arm": (0.5, 0.5)}, {"decay": decays}, report={})
    arms = choose(store.config, store.trials(), tmp_path)
    _, (_, _, text, figure), *_ = pictures(store, arms, store.trials(), tmp_path)
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["#0", *(f"#{i}" for i in range(2, 10))]
    assert "The numbers are those of the table." in text
    _, (_, _, text, figure), *_ = pictures(store, arms[:3], store.trials(), tmp_path)
    names = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert names == ["#0 decay=0", "#2 decay=0.02", "#3 decay=0.03"]


def test_the_command_names_as_many_workers_as_ran_at_once(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]})
    assert _at_once(store) == 1
    start = store.study.trials[0].datetime_start
    assert start is not None
    beside = optuna.trial.create_trial(value=1.0)
    beside.datetime_start, beside.datetime_complete = start, store.study.trials[-1].datetime_complete
    store.study.add_trial(beside)
    assert _at_once(store) == 2

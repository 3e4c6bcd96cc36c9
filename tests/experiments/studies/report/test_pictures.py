"""Which pictures a study's report has: hidden states where the study measured them, none of one trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest

from experiments.records import Record, read_records, write_records
from experiments.studies.queue import Store
from experiments.studies.report.optuna_plots import progress_figure
from experiments.studies.report.pictures import MOST, pictures, study_asked
from experiments.studies.selection import choose, half_records
from experiments.studies.trial_results import record_files
from tests.helpers.planted_study import GAIN, TABLE5, synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_one_trial_is_no_picture() -> None:
    empty = optuna.create_study(direction="maximize")
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


def test_a_caption_counts_the_half_that_is_shown(some: tuple[Store, Path]) -> None:
    """The rate is chosen on one half, and the rows of arms are of the other; a trial's value is of all items."""
    store, root = some
    arms = choose(store.config, store.trials(), root)
    _, after = half_records(arms[0].runs[0], root, False)
    new, kept, replies = ({r.item for r in after if r.suite == suite} for suite in ("new", "kept", "drift"))
    said = f"n: {len(new)} new, {len(kept)} kept, {len(replies)} replies of the base; 1 seed"
    drawn = {one.name: one.figure for one in pictures(store, arms, store.trials(), root)}
    for name in ("forgetting", "trajectories"):
        assert " ".join(drawn[name].legends[0].get_title().get_text().split()).startswith(said), name


def test_a_caption_of_trials_counts_what_the_base_answered(some: tuple[Store, Path], tmp_path: Path) -> None:
    """The config allows 4 new questions; where the records are, they say that there are 120."""
    store, root = some
    assert study_asked(store.config, store.trials(), root).counts["new"] == 120
    assert study_asked(store.config, store.trials(), tmp_path).counts["new"] == 4

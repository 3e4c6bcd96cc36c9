"""The trials of a study read the same data and the same base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.trial import TrialState

from experiments.common.errors import ConfigError, RunError
from experiments.runs import same_data
from experiments.studies.agree import agree
from experiments.studies.claim import ACTIVE
from experiments.studies.queue import Store
from tests.helpers.toy_study import open_store

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


OWN, OTHER = "own data.jsonl 4f1a", "of another trial.csv 77"


@contextmanager
def trial(store: Store, state: TrialState = TrialState.COMPLETE) -> Iterator[None]:
    """Run a trial in the block, as `run_claimed` does, and end it."""
    own = store.study.ask()
    ACTIVE.add(own._trial_id)
    try:
        yield
    finally:
        ACTIVE.discard(own._trial_id)
    store.study.tell(own, 0.5 if state == TrialState.COMPLETE else None, state)


def test_data_that_changed_between_two_trials_is_refused(tmp_path: Path) -> None:
    """Each is a run of its own, and whole: nobody else would notice, and their figures would be compared."""
    store = open_store(tmp_path)
    with trial(store, TrialState.FAIL):
        agree(store, tmp_path, {OWN: "a"}, {})
    with trial(store):
        agree(store, tmp_path, {OWN: "b"}, {})  # corrected before any trial has measured something
        with pytest.raises(RunError, match=r"own data\.jsonl has changed"):  # between two seeds
            agree(store, tmp_path, {OWN: "a"}, {OWN: "b"})
    with trial(store, TrialState.FAIL):
        agree(store, tmp_path, {OWN: "b", OTHER: "c"}, {})
    with trial(store):
        with pytest.raises(RunError, match=r"own data\.jsonl has changed since other trials of study 'toy' were"):
            agree(store, tmp_path, {OWN: "a"}, {})
        agree(store, tmp_path, {OWN: "b", OTHER: "d"}, {})  # the only trial with it failed
    with trial(store), pytest.raises(RunError, match=r"of another trial\.csv has changed"):
        agree(store, tmp_path, {OWN: "b", OTHER: "c"}, {})


def test_runs_of_an_earlier_version_or_from_a_file_note_what_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    known = store.study.ask()
    store.storage.set_trial_system_attr(known._trial_id, "runs", [{"folder": "runs/here"}, {"folder": "runs/gone"}])
    store.study.tell(known, 0.5, TrialState.COMPLETE)

    def noted(run: Path) -> dict[str, str]:
        if run.name == "gone":
            raise ConfigError("no config")
        return {"own.jsonl 4f1a": "a"}

    monkeypatch.setattr(same_data, "digests_noted", noted)
    with pytest.raises(RunError, match=r"own\.jsonl has changed"):
        agree(store, tmp_path, {"own.jsonl 4f1a": "b"}, {})
    agree(store, tmp_path, {"own.jsonl 4f1a": "a"}, {})

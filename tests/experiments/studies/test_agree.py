"""The trials of a study read the same data and the same base model."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from experiments.common.errors import ConfigError, RunError
from experiments.runs import same_data
from experiments.studies.agree import agree
from experiments.studies.claim import ACTIVE
from tests.helpers.toy_study import open_store

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


def test_data_that_changed_between_two_trials_is_refused(tmp_path: Path) -> None:
    """Each is a run of its own, and whole: nobody else would notice, and their figures would be compared."""
    store = open_store(tmp_path)
    first = store.study.ask()
    ACTIVE.add(first._trial_id)
    agree(store, tmp_path, {"own data.jsonl 4f1a": "a"}, {})
    agree(store, tmp_path, {"own data.jsonl 4f1a": "b"}, {})  # corrected before any trial has measured something
    with pytest.raises(RunError, match=r"own data\.jsonl has changed"):  # after an earlier seed of the same trial
        agree(store, tmp_path, {"own data.jsonl 4f1a": "a"}, {"own data.jsonl 4f1a": "b"})
    ACTIVE.discard(first._trial_id)
    store.study.tell(first, 0.5, TrialState.COMPLETE)
    agree(store, tmp_path, {"own data.jsonl 4f1a": "b", "of another trial.csv 77": "c"}, {})
    with pytest.raises(RunError, match=r"own data\.jsonl has changed since other trials of study 'toy' were trained"):
        agree(store, tmp_path, {"own data.jsonl 4f1a": "a", "of another trial.csv 77": "c"}, {})
    agree(store, tmp_path, {"own data.jsonl 4f1a": "b"}, {})


def test_runs_of_an_earlier_version_or_from_a_file_note_what_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    trial = store.study.ask()
    store.storage.set_trial_system_attr(trial._trial_id, "runs", [{"folder": "runs/here"}, {"folder": "runs/gone"}])
    store.study.tell(trial, 0.5, TrialState.COMPLETE)

    def noted(run: Path) -> dict[str, str]:
        if run.name == "gone":
            raise ConfigError("no config")
        return {"own.jsonl 4f1a": "a"}

    monkeypatch.setattr(same_data, "digests_noted", noted)
    with pytest.raises(RunError, match=r"own\.jsonl has changed"):
        agree(store, tmp_path, {"own.jsonl 4f1a": "b"}, {})
    agree(store, tmp_path, {"own.jsonl 4f1a": "a"}, {})

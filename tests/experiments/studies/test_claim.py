"""Workers that are silent or lose their storage: who ends their trial, and what it counts as."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from experiments.common.errors import StudyError
from experiments.studies.locks import STORAGE_FAULTS
from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import Run, dying, open_store, value

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def silence(store: Store) -> None:
    """As after an hour of a suspended machine, or of a database that was away."""
    change(store, "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")


def change(store: Store, statement: str) -> None:
    connection = sqlite3.connect(store.storage.engine.url.database or "", timeout=60)
    with connection:
        connection.execute(statement)
    connection.close()


def wait_for_heartbeat(store: Store) -> None:
    connection = sqlite3.connect(store.storage.engine.url.database or "", timeout=60)
    while not connection.execute("SELECT * FROM trial_heartbeats").fetchall():
        time.sleep(0.01)
    connection.close()


def claim(store: Store) -> None:
    """What another worker does before it takes a trial: it looks twice, a minute or more apart."""
    other = Store(store.url, store.config)
    for now in (0.0, 1e6):
        other.silence.clock = lambda now=now: now
        with other.lock():
            other._tidy()


def test_a_silent_worker_of_this_machine_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        wait_for_heartbeat(store)
        silence(store)
        claim(store)
        assert store.trials()[number].state == "running"
        return TrialOutcome([value(picks)])

    store.work(run, print)
    assert [(t.state, t.attempts) for t in store.trials()] == [("complete", 1)] * 6


@pytest.mark.parametrize("failing", [False, True])
def test_a_worker_whose_trial_was_taken_over_says_so_and_goes_on(tmp_path: Path, failing: bool) -> None:
    """Seen from another machine, which cannot look at the process."""
    store, said, runs = open_store(tmp_path), list[str](), list[int]()

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        runs.append(number)
        if runs == [0]:
            wait_for_heartbeat(store)
            silence(store)
            change(store, "UPDATE trial_user_attributes SET value_json = '{\"host\": \"x\"}' WHERE key = 'owner'")
            claim(store)
            if failing:
                raise TrialFailed("out of memory")
        return TrialOutcome([value(picks)])

    assert store.work(run, said.append) == "all 6 cells of the grid are finished"
    assert "trial 0 was taken over by another worker: the results of this one do not count" in said
    assert [t.state for t in store.trials()] == ["complete"] * 6
    assert [t.attempts for t in store.trials()] == [2, 1, 1, 1, 1, 1]


def test_the_heartbeat_outlives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, beats = open_store(tmp_path, heartbeat=1), list[int]()

    def beat(trial: int) -> None:
        beats.append(trial)
        raise STORAGE_FAULTS[1]("the connection was closed")

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        deadline = time.monotonic() + 20
        while number == 0 and len(beats) < 2:
            assert time.monotonic() < deadline, "the heart stands still"
            time.sleep(0.05)
        return TrialOutcome([value(picks)])

    monkeypatch.setattr(store.storage, "record_heartbeat", beat)
    store.work(run, print)
    assert [t.state for t in store.trials()] == ["complete"] * 6


def test_a_storage_that_fails_ends_the_worker_with_one_error(tmp_path: Path) -> None:
    """A missing table fails as a server that is away does, or a disk that is full."""

    def breaking(store: Store, error: Exception | None) -> Run:
        def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
            change(store, "ALTER TABLE trial_user_attributes RENAME TO away")
            if error:
                raise error
            return TrialOutcome([value(picks)])

        return run

    store = open_store(tmp_path)
    with pytest.raises(OSError, match="no space left"):  # the first error, not what followed from it
        store.work(breaking(store, OSError("no space left")), print)
    store = open_store(tmp_path / "other")
    with pytest.raises(StudyError, match=r"the storage .* failed: .*no such table: trial_user_attributes"):
        store.work(breaking(store, None), print)
    change(store, "ALTER TABLE away RENAME TO trial_user_attributes")
    assert Store(store.url, store.config).trials()[0].state == "lost"  # this process lives, but has left it
    store.work(dying(print, ()), print)
    assert [t.state for t in store.trials()] == ["complete"] * 6


def test_the_storage_has_what_the_dashboard_shows_of_a_trial(tmp_path: Path) -> None:
    """Its figures as numbers, which can be plotted, its page in MLflow and a note; its runs are not in the way."""
    note = pytest.importorskip("optuna_dashboard").get_note
    store, runs = open_store(tmp_path), [{"seed": 0, "folder": "runs/toy-000"}]

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        return TrialOutcome([value(picks)], runs=runs, figures={"kl": 0.25, "nfr": 0.5}, url="http://here/#/runs/1")

    store.work(run, print)
    trial = store.study.trials[0]
    assert {name: trial.user_attrs[name] for name in ("kl", "nfr", "mlflow")} == {
        "kl": 0.25,
        "nfr": 0.5,
        "mlflow": "http://here/#/runs/1",
    }
    assert "runs" not in trial.user_attrs
    assert store.trials()[0].runs == runs
    notes = store.storage.get_study_system_attrs(store.study._study_id)
    text = "".join(str(v) for k, v in notes.items() if k.startswith(f"dashboard:{trial._trial_id}:note_str"))
    assert "[Trial 0 in MLflow](http://here/#/runs/1)" in text
    assert "- kl: 0.25" in text
    assert note(store.study) == ""  # which is the user's


def test_runs_of_trials_of_earlier_versions_are_read(tmp_path: Path) -> None:
    store, runs = open_store(tmp_path), [{"seed": 0, "folder": "runs/toy-000"}]
    picks = {"training.steps": 1, "rate": 0.1}
    fixed = optuna.trial.FixedTrial(picks)
    for key, dimension in store.config.search.items():
        dimension.suggest(fixed, key)
    old = optuna.create_trial(values=[1.0], params=picks, distributions=fixed.distributions, user_attrs={"runs": runs})
    store.study.add_trial(old)
    assert [trial.runs for trial in store.trials() if trial.state == "complete"] == [runs]

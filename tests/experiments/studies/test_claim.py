"""Workers that are silent, that lose their storage, that die: who ends their trial, and what it counts as."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import StudyError
from experiments.studies.claim import STORAGE_FAULTS
from experiments.studies.launch import UNFINISHED, keep_working
from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed, TrialOutcome
from tests.experiments.studies.toy import Forked, Run, open_store, value

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
    """What another worker does before it takes a trial."""
    other = Store(store.url, store.config)
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
    """A table that is gone stands for a server that is away, or a disk that is full."""

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


def dying(how: Callable[[], None], numbers: tuple[int, ...] = (3,)) -> Run:
    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        if number in numbers:
            how()
        return TrialOutcome([value(picks)])

    return run


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_while_trials_wait(tmp_path: Path, workers: int) -> None:
    store, said = open_store(tmp_path, retries=2), list[str]()
    ended = keep_working(store, lambda: Forked(store, dying(kill_self)), workers, said.append)
    assert ended == "all 6 cells of the grid are finished"
    trials = store.trials()
    assert [t.state for t in trials] == [*["complete"] * 3, "failed", *["complete"] * 2]
    assert (trials[3].attempts, trials[3].reason.startswith("its process died")) == (3, True)
    if workers == 1:
        assert trials[3].reason == "its process died (SIGKILL), 3 times"
        replaced = "a worker was ended by SIGKILL; another one takes its place"
        assert said == [replaced, replaced, "a worker was ended by SIGKILL"]  # a retried trial comes last


def test_trials_that_always_kill_their_worker_count_as_failures_in_a_row(tmp_path: Path) -> None:
    store = open_store(tmp_path, retries=0, failures=2)
    ended = keep_working(store, lambda: Forked(store, dying(kill_self, (0, 1, 2, 3))), 1, print)
    assert ended == "stopped: 2 trials in a row failed, the last with: its process died (SIGKILL)"
    store.begin()
    assert store.ended() == ""  # earlier failures are forgiven


def test_a_worker_that_ends_by_itself_is_not_replaced_and_its_trial_has_not_died(tmp_path: Path) -> None:
    store, said = open_store(tmp_path, retries=0), list[str]()
    assert keep_working(store, lambda: Forked(store, dying(lambda: os._exit(1))), 1, said.append) == UNFINISHED
    assert said == ["a worker ended with exit code 1; its message is above"]
    keep_working(store, lambda: Forked(store, dying(print)), 1, said.append)
    assert [(t.state, t.attempts) for t in store.trials()] == [("complete", 2 if n == 3 else 1) for n in range(6)]


def test_a_worker_that_dies_without_a_trial_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, started = open_store(tmp_path), list[Forked]()
    monkeypatch.setattr(Store, "work", lambda *_: kill_self())

    def start() -> Forked:
        started.append(Forked(store, dying(print)))
        return started[-1]

    assert keep_working(store, start, 2, print) == UNFINISHED
    assert len(started) == 2

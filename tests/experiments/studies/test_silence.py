"""A live trial of another machine is never taken over because a clock was set; a dead one is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from experiments.studies.queue import Store
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import open_store, quiet

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental", "ignore:Heartbeat of storage")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def of_another_machine(store: Store) -> int:
    """Begin a trial there; its heartbeat is what the clock of that machine says, an hour behind."""
    trial = store.study.ask()
    trial.set_user_attr("owner", {"host": "another-machine", "pid": "1"})
    beat(store, trial._trial_id, 0)
    return int(trial._trial_id)


def beat(store: Store, trial: int, second: int) -> None:
    with sqlite3.connect(store.storage.engine.url.database or "") as connection:
        connection.execute("DELETE FROM trial_heartbeats")
        connection.execute(
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, ?)",
            (trial, f"2020-01-01 00:00:{second:02d}"),
        )
    connection.close()


def states(store: Store) -> list[str]:
    with store.lock():
        return [trial.state.name for trial in store._tidy() if "owner" in trial.user_attrs]


def test_a_live_trial_is_left_alone_whatever_the_clocks_say(tmp_path: Path) -> None:
    store, clock = open_store(tmp_path), Clock()
    store.silence.clock = clock
    trial = of_another_machine(store)
    for second in range(6):
        beat(store, trial, second)
        assert states(store) == ["RUNNING"]
        assert store.doubtful
        clock.now += 60


def test_a_heartbeat_that_stands_still_is_that_of_a_dead_worker(tmp_path: Path) -> None:
    store, clock = open_store(tmp_path), Clock()
    store.silence.clock = clock
    of_another_machine(store)
    assert states(store) == ["RUNNING"]
    clock.now += 119
    assert states(store) == ["RUNNING"]
    clock.now += 2
    assert states(store) == ["FAIL"]
    assert not store.doubtful


def test_a_worker_without_other_work_waits_until_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = open_store(tmp_path, search={"training.steps": {"kind": "choice", "values": [1]}}), Clock()
    store.silence.clock = clock
    of_another_machine(store)

    def sleep(seconds: float) -> None:
        clock.now += 61

    monkeypatch.setattr("experiments.studies.queue.time.sleep", sleep)
    assert store.work(lambda *_: TrialOutcome([1.0]), quiet) == "all 1 cells of the grid are finished"
    assert [trial.attempts for trial in store.trials()] == [2]
    assert clock.now >= 100 + 120


def test_nothing_is_watched_without_an_old_heartbeat(tmp_path: Path) -> None:
    store = open_store(tmp_path, search={"training.steps": {"kind": "choice", "values": [1]}})
    assert store.work(lambda *_: TrialOutcome([1.0]), quiet)
    assert not store.doubtful
    assert store.silence.confirmed(()) == set()

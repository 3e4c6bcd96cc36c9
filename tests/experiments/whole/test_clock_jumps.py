"""A wall clock that is set forward or back ends no work that lives, repeats none, and spends no budget."""

from __future__ import annotations

import datetime
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from experiments.tracking.journal import Journal
from experiments.tracking.machine import process_tags
from experiments.tracking.tracker import Tracker
from tests.helpers.toy_study import open_store, quiet, value

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
Jump = Callable[[float], None]
DAYS = [-400.0, 400.0]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Set the clock of this process by so many days, and with it the times at which processes began."""
    real, began, days = time.time, psutil.Process.create_time, [0.0]
    today = datetime.datetime.now

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return today(tz) + datetime.timedelta(days=days[0])

    monkeypatch.setattr(time, "time", lambda: real() + 86400 * days[0])
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began(process) + 86400 * days[0])
    monkeypatch.setattr("optuna.storages._rdb.storage.datetime", Moved)
    return lambda by: days.__setitem__(0, by)


def move_heartbeats(store: Store, days: float) -> None:
    """As the database's own clock sees them after it was set by so many days."""
    connection = sqlite3.connect(store.storage.engine.url.database or "", timeout=60)
    with connection:
        connection.execute(f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '{-days} days')")
    connection.close()


@pytest.mark.parametrize("days", DAYS)
def test_a_running_trial_is_not_taken_over_and_spends_no_budget(tmp_path: Path, jump: Jump, days: float) -> None:
    store, runs = open_store(tmp_path, budget={"trials": 6, "hours": 1}), list[int]()

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        runs.append(number)
        jump(days if number % 2 else 0)
        move_heartbeats(store, days)
        other = Store(store.url, store.config)
        with other.lock():
            other._tidy()
        assert other.trials()[number].state == "running"
        return TrialOutcome([value(picks)])

    assert store.work(run, quiet) == "all 6 cells of the grid are finished"
    assert runs == [0, 1, 2, 3, 4, 5]
    assert [(t.state, t.attempts) for t in store.trials()] == [("complete", 1)] * 6
    assert all(0 <= t.seconds < 60 for t in store.trials())


def test_failures_in_a_row_are_counted_in_the_order_of_the_trials(tmp_path: Path, jump: Jump) -> None:
    """Two that failed before the clock was set back are not the last two."""

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        jump(400 if number < 2 else 0)
        if number in (0, 1, 3):
            raise TrialFailed("loss became nan")
        return TrialOutcome([value(picks)])

    store = open_store(tmp_path, failures=3)
    assert store.work(run, quiet) == "all 6 cells of the grid are finished"
    assert [t.number for t in store.trials() if t.state == "failed"] == [0, 1, 3]


@pytest.mark.parametrize("days", DAYS)
def test_a_live_run_is_not_ended_and_its_points_are_not_doubled(tmp_path: Path, jump: Jump, days: float) -> None:
    tracker = Tracker(tmp_path, "demo")
    with tracker.run("demo", folder=tmp_path / "runs" / "demo") as run:
        run.log_metrics({"loss": 2.0}, 1)
        jump(days)
        assert Tracker(tmp_path, "demo").reap() == []
        run.log_metrics({"loss": 1.0}, 2)
        with tracker.run("arm", parent=run.id, folder=tmp_path / "runs" / "demo" / "arms" / "arm") as arm:
            arm.log_metrics({"loss": 3.0}, 1)
    [journal] = [Journal(path) for path in (tmp_path / "runs" / "demo").glob("journal-*.jsonl")]
    assert [e["status"] for e, _ in journal.read() if e["event"] == "end"] == ["FINISHED"]
    points = tracker.client.get_metric_history(run.id, "loss")
    assert sorted((p.step, p.value) for p in points) == [(1, 2.0), (2, 1.0)]
    assert {r.info.status for r in tracker.client.search_runs([tracker.experiment_id])} == {"FINISHED"}


def test_what_says_that_a_process_lives_has_no_wall_clock(jump: Jump) -> None:
    """Ticks since the machine's start are compared, if the machine has them."""
    noted = process_tags()
    jump(400)
    assert {name for name, tag in process_tags().items() if tag != noted[name]} == {"pid_started"}

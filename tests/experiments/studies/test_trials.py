"""Attempts at one trial: which end counts, how often it is tried again, when failures stop the study."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.commands import command
from experiments.studies.queue import Store
from experiments.studies.report.table import status_text
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from experiments.studies.trials import continued, deaths
from tests.helpers.toy_study import (
    RANGES,
    fork,
    kill,
    logging_run,
    open_store,
    quiet,
    start_workers,
    toy_study,
    value,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_a_trial_that_always_kills_its_process_is_tried_k_times_more(tmp_path: Path) -> None:
    def deadly(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return TrialOutcome([value(picks)])

    store = open_store(tmp_path, retries=2)
    for _ in range(4):
        for worker in start_workers(store.url, store.config, deadly, 1):
            worker.join()
    trials = store.trials()
    reason = "its process died, 3 times (retries: 2; a larger number continues it)"
    assert (trials[3].state, trials[3].attempts, trials[3].reason) == ("failed", 3, reason)
    assert [t.state for t in trials if t.number != 3] == ["complete"] * 5


def test_only_deaths_without_progress_count() -> None:
    def lost(began_at: int, reached: int) -> Any:
        notes = {"owner": {}, "began_at": began_at, "reached": reached}
        return SimpleNamespace(number=0, state=SimpleNamespace(name="FAIL"), user_attrs=notes, system_attrs={})

    further = [lost(0, 2), lost(2, 4), lost(4, 6), lost(6, 8)]
    assert deaths(further) == 0
    assert continued(further, retries=0)
    stuck = [lost(0, 2), lost(2, 2), lost(2, 4), lost(4, 4)]
    assert deaths(stuck) == 2
    assert continued(stuck, retries=2)
    assert not continued(stuck, retries=1)


def test_a_retried_trial_has_the_picks_and_the_number_of_the_first(tmp_path: Path) -> None:
    store = open_store(tmp_path, search=RANGES, sampler="tpe", budget={"trials": 1})
    workers = start_workers(store.url, store.config, logging_run(tmp_path / "log", 30), 1)
    while not (tmp_path / "log").is_file():
        time.sleep(0.01)
    kill(workers)
    [before] = store.trials()
    seen = []
    store.work(lambda number, picks, report: seen.append((number, picks)) or TrialOutcome([1.0]), quiet)
    assert seen == [(0, before.picks)]
    assert [(t.number, t.state, t.attempts) for t in store.trials()] == [(0, "complete", 2)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stopping_by_hand_does_not_count_as_a_death(tmp_path: Path, stop: type[BaseException]) -> None:
    def stopped(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        raise stop

    def work() -> None:
        with pytest.raises(stop):
            store.work(stopped, quiet)
        os._exit(0)

    store = open_store(tmp_path, retries=0, search=RANGES, sampler="random", budget={"trials": 1})
    for _ in range(3):
        process = fork.Process(target=work)
        process.start()
        process.join()
        assert [t.state for t in store.trials()] == ["stopped"]
        assert "stopped: trial 0" in status_text(store, tmp_path)
        assert "failed" not in status_text(store, tmp_path)
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    assert [(t.state, t.attempts) for t in store.trials()] == [("complete", 4)]


def test_failures_in_a_row_stop_the_study_until_it_is_started_again(tmp_path: Path) -> None:
    def always(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        raise TrialFailed("out of memory")

    store = open_store(tmp_path, failures=3)
    said = "stopped: 3 trials in a row failed, the last with: out of memory"
    assert store.work(always, quiet) == said
    assert [t.state for t in store.trials()] == ["failed"] * 3 + ["waiting"] * 3
    assert Store(store.url, store.config).work(always, quiet) == said  # another worker heeds it too
    store.begin()
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    assert [t.state for t in store.trials()] == ["failed"] * 3 + ["complete"] * 3


def test_a_lost_trial_that_will_be_tried_again_is_no_end(tmp_path: Path) -> None:
    store = open_store(tmp_path, search=RANGES, sampler="random", budget={"trials": 1})
    workers = start_workers(store.url, store.config, logging_run(tmp_path / "log", 30), 1)
    while not (tmp_path / "log").is_file():
        time.sleep(0.01)
    assert store.going_on()
    kill(workers)
    assert store.going_on()  # its process is gone, the next start continues it
    assert [(t.state, t.reason) for t in store.trials()] == [("lost", "its process died")]
    assert "lost:    trial 0" in status_text(store, tmp_path)
    assert Store(store.url, toy_study(**store.config.to_dict() | {"retries": 0})).trials()[0].state == "failed"
    for _ in range(2):
        assert f"not finished: {command('resume', 'toy')}" in status_text(store, tmp_path)
        store.begin()  # marks the trial as lost, and queues it again
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    assert not store.going_on()
    assert "not finished" not in status_text(store, tmp_path)

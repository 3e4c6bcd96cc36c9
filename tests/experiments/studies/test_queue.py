"""Claims, retries, budgets and failures of a study, with toy trials in real processes on a real storage."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.common.commands import command
from experiments.common.errors import ConfigError, StudyError
from experiments.studies.config import PRUNERS, SAMPLERS
from experiments.studies.locks import shown
from experiments.studies.optimizers import PRUNERS as OPTUNA_PRUNERS
from experiments.studies.optimizers import SAMPLERS as OPTUNA_SAMPLERS
from experiments.studies.optimizers import check_options
from experiments.studies.queue import Store
from experiments.studies.report.table import export, status_text
from experiments.studies.trial import TrialFailed, TrialOutcome, TrialPruned
from tests.experiments.studies.toy import (
    SEARCH,
    fork,
    holds,
    kill,
    logging_run,
    open_store,
    start_workers,
    toy_study,
    value,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
RANGES = {
    "rate": {"kind": "float", "path": "arms.0.learning_rates.0", "low": 1e-4, "high": 1e-1, "log": True},
    "training.steps": {"kind": "int", "low": 1, "high": 8},
    "training.schedule": {"kind": "choice", "values": ["linear", "cosine"]},
}


def quiet(text: str) -> None:
    pass


def test_the_tables_name_the_same_variants() -> None:
    assert tuple(OPTUNA_SAMPLERS) == SAMPLERS
    assert tuple(OPTUNA_PRUNERS) == PRUNERS


def test_grid_with_three_workers_runs_each_cell_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for worker in start_workers(store.url, store.config, logging_run(tmp_path / "log"), 3):
        worker.join()
        assert worker.exitcode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{word} {n}" for word in ("begin", "end") for n in range(6))
    assert [trial.values for trial in store.trials()] == [[value(trial.picks)] for trial in store.trials()]
    assert len({tuple(trial.picks.values()) for trial in store.trials()}) == 6
    assert store.ended() == "all 6 cells of the grid are finished"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "gp" else n for n in SAMPLERS if n != "grid"]
)
def test_every_sampler_keeps_to_budget_and_ranges(tmp_path: Path, name: str) -> None:
    options = {"n_startup_trials": 2} if name in ("tpe", "gp") else {}
    budget = {"trials": 4}
    store = open_store(tmp_path, search=RANGES, sampler={"name": name, "options": options}, budget=budget)
    store.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    trials = store.trials()
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert all(1e-4 <= t.picks["rate"] <= 1e-1 and t.picks["training.steps"] in range(1, 9) for t in trials)
    assert len({tuple(t.picks.values()) for t in trials}) == 4
    again = open_store(tmp_path / "again", search=RANGES, sampler={"name": name, "options": options}, budget=budget)
    again.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    assert [t.picks for t in again.trials()] == [t.picks for t in trials]  # the seed decides


def test_budget_is_exact_with_workers_that_start_together(tmp_path: Path) -> None:
    store = open_store(tmp_path, search=RANGES, sampler="random", budget={"trials": 5})
    for worker in start_workers(store.url, store.config, logging_run(tmp_path / "log"), 3):
        worker.join()
    assert len(store.trials()) == 5
    assert len({trial.picks["rate"] for trial in store.trials()}) == 5  # no two workers drew the same
    assert store.add_trials(1) == 6
    store.work(logging_run(tmp_path / "log"), quiet)
    assert len(store.trials()) == 6


def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """All workers are killed again and again, at a random moment after the first has begun a trial; a trial that the
    storage has as complete never begins again."""
    moments, done, hits, log = random.Random(0), set[int](), 0, tmp_path / "log"
    cells = {**SEARCH, "training.steps": {"kind": "choice", "values": [*range(1, 13)]}}
    store = open_store(tmp_path, retries=100, search=cells)
    for _ in range(12):
        log.write_text("")
        workers = start_workers(store.url, store.config, logging_run(log, 0.25), 2)
        wait_for(lambda: "begin" in log.read_text())
        time.sleep(moments.uniform(0, 0.4))
        kill(workers)
        states = {trial.number: trial.state for trial in store.trials()}
        begun = {int(line.split()[1]) for line in log.read_text().splitlines() if "begin" in line}
        assert not done & begun, "a finished trial was run again"
        assert done <= {number for number, state in states.items() if state == "complete"}
        done = {number for number, state in states.items() if state == "complete"}
        lost = {number for number, state in states.items() if state == "lost"}
        assert begun - done <= lost  # a worker may also die between its claim and its first line
        hits += len(begun - done)
    assert hits >= 8, "the kills hit too few trials for this test to mean anything"
    assert len(done) < 24, "the study had ended before the last kill"
    store.work(logging_run(log, 0), quiet)
    trials = store.trials()
    assert [trial.state for trial in trials] == ["complete"] * 24
    assert sum(trial.attempts for trial in trials) >= 24 + hits
    assert len({tuple(trial.picks.values()) for trial in trials}) == 24
    assert all(trial.values == [value(trial.picks)] for trial in trials)
    assert all(trial.runs == [{"seed": 0, "picks": trial.picks}] for trial in trials)


def test_one_killed_worker_is_taken_over_by_the_others(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, *others = start_workers(store.url, store.config, logging_run(tmp_path / "log", 0.5), 3)
    wait_for(lambda: holds(store, first))
    kill([first])
    for worker in others:
        worker.join()
    assert [trial.state for trial in store.trials()] == ["complete"] * 6
    assert sum(trial.attempts for trial in store.trials()) == 7


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
    assert (trials[3].state, trials[3].attempts, trials[3].reason) == ("failed", 3, "its process died, 3 times")
    assert [t.state for t in trials if t.number != 3] == ["complete"] * 5


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


def test_a_failure_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    def sometimes(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        if number in (0, 1, 3):
            raise TrialFailed(f"loss became nan in {number}")
        return TrialOutcome([value(picks)])

    store = open_store(tmp_path)
    assert store.work(sometimes, quiet) == "all 6 cells of the grid are finished"
    failed = {t.number: t.reason for t in store.trials() if t.state == "failed"}
    assert failed == {n: f"loss became nan in {n}" for n in (0, 1, 3)}
    assert store.front() == [4]  # steps 3, rate .1


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


def test_an_error_of_the_machine_stops_the_worker_and_keeps_the_trial(tmp_path: Path) -> None:
    def full(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        raise OSError("no space left")

    store = open_store(tmp_path, retries=0)
    with pytest.raises(OSError, match="no space left"):
        store.work(full, quiet)
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    assert [t.state for t in store.trials()] == ["complete"] * 6


def test_pruner_stops_what_is_worse_than_the_median(tmp_path: Path) -> None:
    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        for step in range(1, 4):
            if report(step, value(picks) * step):
                raise TrialPruned(TrialOutcome([], {}, [{"seed": 0}]), f"at {step}")
        return TrialOutcome([value(picks)])

    pruner = {"name": "median", "options": {"n_startup_trials": 2}}
    rising = {"training.steps": {"kind": "choice", "values": [3, 4, 1, 5]}, "rate": {"kind": "choice", "values": [0.1]}}
    rising["rate"]["path"] = "arms.0.learning_rates.0"  # type: ignore[assignment]
    store = open_store(tmp_path, search=rising, pruner=pruner)
    store.work(run, quiet)
    assert [t.state for t in store.trials()] == ["complete", "complete", "pruned", "complete"]
    assert (store.trials()[2].reason, store.trials()[2].runs) == ("at 1", [{"seed": 0}])


def test_several_objectives_and_constraints(tmp_path: Path) -> None:
    objectives = [{"figure": "gain", "direction": "maximize"}, {"figure": "kl", "direction": "minimize"}]

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        assert report is None
        steps = picks["training.steps"]
        return TrialOutcome([steps, steps + picks["rate"]], {"kl <= 3.15": steps + picks["rate"] - 3.15})

    store = open_store(tmp_path, objectives=objectives)
    store.work(run, quiet)
    best = [t for t in store.trials() if t.number in store.front()]
    assert [(t.picks["training.steps"], t.picks["rate"]) for t in best] == [(1, 0.1), (2, 0.1), (3, 0.1)]
    assert [t.feasible for t in store.trials()] == [True] * 5 + [False]
    assert max(store.importances()["gain"], key=store.importances()["gain"].__getitem__) == "training.steps"


def test_power_cut_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The files as they lie on the disk in the middle of a transaction, half of its pages written."""
    store = open_store(tmp_path)
    store.work(lambda number, picks, report: TrialOutcome([value(picks)]), quiet)
    before = store.trials()
    connection = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE trial_user_attributes SET value_json = hex(zeroblob(20000))")
    connection.execute("UPDATE trials SET state = 'FAIL'")
    (tmp_path / "after").mkdir()
    for file in tmp_path.glob("optuna.db*"):
        shutil.copy(file, tmp_path / "after" / file.name)
    assert (tmp_path / "after" / "optuna.db-journal").stat().st_size > 0
    assert b"00000000" * 100 in (tmp_path / "after" / "optuna.db").read_bytes()  # the write had reached the file
    connection.execute("ROLLBACK")
    connection.close()
    assert Store(f"sqlite:///{tmp_path / 'after' / 'optuna.db'}", store.config).trials() == before


def test_another_config_under_the_same_name_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    changed = Store(store.url, toy_study(seeds=[0, 1]))
    with pytest.raises(ConfigError, match="was started from another config"):
        changed.begin()
    Store(store.url, toy_study(retries=7, budget={"trials": 3})).begin()  # what does not change a trial may change
    assert Store(store.url, name="toy").config.retries == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": {"name": "grid", "options": {"n": 1}}}, "sampler.options.n: grid has no such option"),
        (
            {"sampler": {"name": "tpe", "options": {"n_startup_trial": 1}}, "budget": {"trials": 1}},
            "did you mean 'n_startup_trials'",
        ),
        ({"pruner": {"name": "percentile"}}, "pruner 'percentile': .*percentile"),
    ],
)
def test_options_are_checked_before_anything_runs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(toy_study(**change))


def test_storages_that_are_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StudyError, match=r"no study 'tyo' in .*did you mean 'toy'"):
        Store(store.url, name="tyo")
    (tmp_path / "broken.db").write_text("no database" * 100)
    with pytest.raises(StudyError, match=r"broken.db cannot be used"):
        Store(f"sqlite:///{tmp_path / 'broken.db'}", toy_study())
    with pytest.raises(StudyError, match="cannot be used"):
        Store("postgresql+psycopg://127.0.0.1:1/none", toy_study())
    assert shown("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me:***@host/db"
    with pytest.raises(StudyError, match="has no budget of trials"):
        store.add_trials(3)
    with pytest.raises(ConfigError, match="must be at least 1, but got -5"):
        store.add_trials(-5)
    Store(store.url, toy_study(name="made"))  # killed before `begin`
    with pytest.raises(StudyError, match="study 'made' was ended before it had begun: `study CONFIG` begins it"):
        Store(store.url, name="made")


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


def test_mixed_picks_are_exported_to_every_format(tmp_path: Path) -> None:
    layers = {"kind": "choice", "path": "arms.0.control.layers", "values": [1, [0, 2]]}
    store = open_store(tmp_path, search={"layers": layers})
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    for ending in (".csv", ".parquet", ".json"):
        assert export(store, tmp_path / f"out{ending}") == 2
    assert set(pd.read_parquet(tmp_path / "out.parquet")["pick/layers"]) == {"1", "[0, 2]"}

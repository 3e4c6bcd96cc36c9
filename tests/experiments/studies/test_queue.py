"""Claims, budgets and failures of a study, with toy trials in real processes on a real storage."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import StudyError
from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import (
    RANGES,
    SEARCH,
    begun,
    holds,
    kill,
    logging_run,
    open_store,
    quiet,
    start_workers,
    toy_study,
    value,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


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
        lost = {number for number, state in states.items() if state in ("lost", "waiting")}  # the last one took it over
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


def test_an_error_of_the_machine_stops_the_worker_and_keeps_the_trial(tmp_path: Path) -> None:
    def full(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        raise OSError("no space left")

    store = open_store(tmp_path, retries=0)
    with pytest.raises(OSError, match="no space left"):
        store.work(full, quiet)
    store.work(lambda number, picks, report: TrialOutcome([1.0]), quiet)
    assert [t.state for t in store.trials()] == ["complete"] * 6


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


def test_trials_that_differ_in_one_dimension_have_no_importances(tmp_path: Path) -> None:
    """It would explain all of the variance, whatever it is."""
    rates = {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [0.1, 0.2, 0.3, 0.4, 0.5]}
    steps = {"kind": "choice", "values": [1]}
    store = open_store(tmp_path, search={"training.steps": steps, "rate": rates})
    store.work(lambda number, picks, report: TrialOutcome([picks["rate"]]), quiet)
    assert store.importances() == {}


def test_optuna_calls_the_objectives_by_their_figures(tmp_path: Path) -> None:
    objectives = [{"figure": name, "direction": "maximize"} for name in ("gain", "retention + kept_accuracy")]
    store = open_store(tmp_path, objectives=objectives)
    store.begin()
    assert Store(store.url, name="toy").study.metric_names == ["gain", "retention + kept_accuracy"]


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


def test_the_same_picks_are_not_trained_twice(tmp_path: Path) -> None:
    """A random sampler over two values, ten trials: two are run, eight take over their values."""
    search = {"training.steps": {"kind": "choice", "values": [1, 2]}}
    store = open_store(tmp_path, search=search, sampler="random", budget={"trials": 10})
    constrained: list[dict[str, Any]] = []

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        constrained.append(picks)
        runs = [{"seed": 0, "picks": picks}]
        return TrialOutcome([float(picks["training.steps"])], {"kl <= 1": picks["training.steps"] - 1.5}, runs)

    assert store.work(run, quiet) == "all 10 trials are finished"
    assert len(constrained) == 2
    trials = store.trials()
    assert len(trials) == 10
    assert all(t.state == "complete" and t.values == [float(t.picks["training.steps"])] for t in trials)
    assert all(t.feasible == (t.picks["training.steps"] == 1) for t in trials)
    originals = {t.number for t in trials if t.repeats is None}
    assert len(originals) == 2
    assert {t.repeats for t in trials} - {None} <= originals


def test_a_lower_budget_of_a_grid_that_has_begun_counts(tmp_path: Path) -> None:
    open_store(tmp_path)  # queues its six cells
    fewer = Store(f"sqlite:///{tmp_path / 'optuna.db'}", toy_study(budget={"trials": 2}))
    fewer.begin()
    assert fewer.work(logging_run(tmp_path / "log"), quiet) == "all 2 trials are finished"
    assert begun(tmp_path / "log") == 2


def test_a_study_is_finished_only_after_its_last_trial(tmp_path: Path) -> None:
    store, said = open_store(tmp_path, budget={"trials": 2}), list[str]()

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        said.append(store.ended())
        return TrialOutcome([value(picks)])

    said.append(store.work(run, quiet))
    assert said == ["", "all 2 trials are claimed", "all 2 trials are finished"]


def test_cells_that_were_added_are_not_called_finished(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget={"trials": 2})
    store.work(logging_run(tmp_path / "log"), quiet)
    assert store.ended() == "all 2 trials are finished"
    store.add_trials(3)
    assert store.ended() == ""
    store.work(logging_run(tmp_path / "log"), quiet)
    assert begun(tmp_path / "log") == 5
    store.add_trials(9)
    store.work(logging_run(tmp_path / "log"), quiet)
    assert (begun(tmp_path / "log"), store.ended()) == (6, "all 6 cells of the grid are finished")
    with pytest.raises(StudyError, match="has all 6 cells of its grid: none is left"):
        store.add_trials(1)

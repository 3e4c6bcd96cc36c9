"""Workers of a study: how they start, who replaces them when they die, and what follows the last trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import StudyError
from experiments.studies import launch
from experiments.studies import posthoc as afterwards
from experiments.studies.launch import IDLE_DEATHS, UNFINISHED, keep_working, run_study
from experiments.studies.posthoc import apply_posthoc
from experiments.studies.queue import Store
from experiments.studies.storage import storage_url
from experiments.tracking.machine import _ticks, process_tags
from experiments.tracking.tracker import Tracker
from tests.helpers.toy_study import Forked, NoTracker, dying, fork, open_store, quiet, run_at_rate, toy_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_workers_get_the_storage_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line can be read by every user of the machine."""
    started: list[tuple[list[str], dict[str, str]]] = []

    class Ends:
        pid, returncode = 0, 0

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append((command, env))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("experiments.studies.workers.subprocess", SimpleNamespace(Popen=Ends))
    monkeypatch.setattr("experiments.studies.launch.apply_posthoc", lambda *args: None)
    url = f"sqlite:///{tmp_path / 'own.db'}"
    with pytest.raises(StudyError, match="ended before the trials did"):
        run_study(toy_study(), tmp_path, workers=1, storage=url, say=quiet)
    [(command, environment)] = started
    assert not any("own.db" in word for word in command)
    monkeypatch.setenv("STUDY_STORAGE", environment["STUDY_STORAGE"])
    assert storage_url(tmp_path, None) == url


def test_who_joins_leaves_the_studys_mlflow_run_to_the_one_who_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first to end would mark it finished while the other trains, and a kill would go unseen."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("experiments.studies.launch.work", lambda store, root, say: "all trials are finished")
    note = tmp_path / "studies" / "toy" / "mlflow.json"
    run_study(toy_study(), tmp_path, say=quiet)
    [began] = study_runs(tmp_path)
    assert json.loads(note.read_text()) == {"run_id": began}  # nobody works on it any more
    with subprocess.Popen(["sleep", "60"]) as other:
        owner = {**process_tags(), "pid": str(other.pid), "pid_ticks": _ticks(other.pid)}
        note.write_text(json.dumps({"run_id": "x", "owner": owner}))
        run_study(toy_study(), tmp_path, say=quiet)
        assert json.loads(note.read_text())["run_id"] == "x"
        assert study_runs(tmp_path) == [began]
        with monkeypatch.context() as patched, pytest.raises(SystemExit, match="143"):  # noqa: PT012
            patched.setattr("experiments.studies.launch.work", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            run_study(toy_study(), tmp_path, say=quiet)  # who joins closes its runs too, and ends its workers
        other.kill()
    run_study(toy_study(), tmp_path, say=quiet)  # its owner is dead, and the run is unknown: a new one
    assert len(study_runs(tmp_path)) == 2


def test_two_shells_that_start_a_study_at_the_same_moment_make_one_mlflow_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, ready = tmp_path / "opened", fork.Barrier(2)
    (tmp_path / "studies").mkdir()

    class Slow(NoTracker):
        @contextmanager
        def run(self, *_: object, note: Any, **__: object) -> Iterator[NoTracker]:
            with opened.open("a") as file:
                file.write("x")
            time.sleep(0.5)  # as an MLflow that is far away
            note("the run")
            yield self

    def start() -> None:
        ready.wait()
        with launch._study_run(Slow(), toy_study(), tmp_path / "studies" / "toy"):  # type: ignore[arg-type]
            ready.wait()  # both have begun, and both live
        os._exit(0)

    shells = [fork.Process(target=start) for _ in range(2)]
    for shell in shells:
        shell.start()
    for shell in shells:
        shell.join(60)
    assert [shell.exitcode for shell in shells] == [0, 0]
    assert opened.read_text() == "x"


def study_runs(root: Path) -> list[str]:
    tracker = Tracker(root, "toy")
    return [run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'study'")]


def test_a_budget_of_hours_ends_a_grid_and_what_follows_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(afterwards, "choose", lambda study, trials, root: chosen.append(len(trials)) or [])
    monkeypatch.setattr(launch, "run_trial", lambda study, number, picks, *_: run_at_rate(number, picks, None))
    monkeypatch.setattr(launch, "Tracker", NoTracker)
    config = toy_study(budget={"hours": 1e-9}, posthoc=[{"arm": "arm", "op": "wise", "alpha": 0.5}])
    said: list[str] = []
    store = run_study(config, tmp_path, say=said.append)
    assert [t.state for t in store.trials()] == ["complete", *["waiting"] * 5]
    assert store.ended().startswith("the budget of 1e-09 hours is spent (")
    assert chosen == [6]
    assert "arm-wise-0.5: no complete trial is called 'arm' in the report; its rows are: none" in said
    apply_posthoc(config, [*store.trials()[:5], running(store)], tmp_path, said.append)
    assert chosen == [6]  # another machine still runs a trial
    more = toy_study(budget={"hours": 1}, posthoc=[{"arm": "arm", "op": "wise", "alpha": 0.5}])
    assert [t.state for t in run_study(more, tmp_path, say=said.append).trials()] == ["complete"] * 6


def test_a_study_says_that_it_goes_on_with_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first trials were trained with the packages of its start."""
    monkeypatch.setattr(launch, "run_trial", lambda study, number, picks, *_: run_at_rate(number, picks, None))
    said: list[str] = []
    for version, hours in (("2.1", 1e-9), ("2.2", 1.0)):
        monkeypatch.setattr("experiments.tracking.tracker.code_tags", lambda v=version: {"version/torch": v})
        run_study(toy_study(budget={"hours": hours}), tmp_path, say=said.append)
    found = [line for line in said if "began with" in line]
    assert found == ["toy began with torch 2.1, and goes on with 2.2: its trials may differ for that"]


def running(store: Store) -> Any:
    [last] = store.trials()[5:]
    last.state = "running"
    return last


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
        assert trials[3].reason == "its process died (SIGKILL), 3 times (retries: 2; a larger number continues it)"
        replaced = "a worker was ended by SIGKILL; another one takes its place"
        assert said == [replaced, replaced, "a worker was ended by SIGKILL"]  # a retried trial comes last


def test_trials_that_always_kill_their_worker_count_as_failures_in_a_row(tmp_path: Path) -> None:
    store = open_store(tmp_path, retries=0, failures=2)
    ended = keep_working(store, lambda: Forked(store, dying(kill_self, (0, 1, 2, 3))), 1, print)
    limit = "(retries: 0; a larger number continues it)"
    assert ended == f"stopped: 2 trials in a row failed, the last with: its process died (SIGKILL) {limit}"
    store.begin()
    assert store.ended() == ""  # earlier failures are forgiven


def test_a_worker_that_ends_by_itself_is_not_replaced_and_its_trial_has_not_died(tmp_path: Path) -> None:
    store, said = open_store(tmp_path, retries=0), list[str]()
    assert keep_working(store, lambda: Forked(store, dying(lambda: os._exit(1))), 1, said.append) == UNFINISHED
    assert said == ["a worker ended with exit code 1; its message is above"]
    keep_working(store, lambda: Forked(store, dying(print)), 1, said.append)
    assert [(t.state, t.attempts) for t in store.trials()] == [("complete", 2 if n == 3 else 1) for n in range(6)]


def test_a_trial_that_gets_further_before_each_death_is_not_given_up(tmp_path: Path) -> None:
    """As on a machine that is taken away again and again; every attempt reaches a newer checkpoint."""
    store, deaths = open_store(tmp_path, retries=0, budget={"trials": 1}), tmp_path / "deaths"

    def die() -> None:
        with deaths.open("a") as file:
            file.write("x")
        if deaths.stat().st_size <= 3:
            kill_self()

    store.progress = lambda number, picks: deaths.stat().st_size  # as read by the parent: the steps done
    assert keep_working(store, lambda: Forked(store, dying(die, (0,))), 1, quiet) == "all 1 trials are finished"
    [trial] = store.trials()[:1]
    assert (trial.state, trial.attempts) == ("complete", 4)


def test_a_worker_that_dies_without_a_trial_is_replaced_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, started = open_store(tmp_path), list[Forked]()
    monkeypatch.setattr(Store, "work", lambda *_: kill_self())

    def start() -> Forked:
        started.append(Forked(store, dying(print)))
        return started[-1]

    assert keep_working(store, start, 2, print) == UNFINISHED
    assert len(started) == 2 + IDLE_DEATHS - 1


@pytest.mark.parametrize(
    ("budget", "end"),
    [
        (None, ""),
        (6, ""),
        (4, ", the first of the grid's 6 cells (the last dimension varies fastest)"),
        (99, " (budget.trials=99, but the grid has 6 cells)"),
    ],
)
def test_a_budget_of_other_trials_than_the_grid_has_is_said(tmp_path: Path, budget: int | None, end: str) -> None:
    store = open_store(tmp_path, budget={"trials": budget})
    assert launch._before(store) == f"0 of {min(budget or 6, 6)} trials done{end}"
    firsts = [trial.system_attrs["fixed_params"]["training.steps"] for trial in store.study.get_trials(deepcopy=False)]
    assert firsts == [1, 1, 2, 2, 3, 3][: budget or 6]


def test_a_study_without_a_question_says_what_it_searches() -> None:
    assert launch._description(toy_study()).startswith("Searches ")
    assert toy_study().objectives[0].figure in launch._description(toy_study())

"""Trials that take milliseconds, and workers as real processes: what is tested is claims, retries and counts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.studies.config import StudyConfig
from experiments.studies.load import parse_study
from experiments.studies.queue import Store
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.small_run import small_values

Run = Callable[..., TrialOutcome]
SEARCH = {
    "training.steps": {"kind": "choice", "values": [1, 2, 3]},
    "rate": {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [0.1, 0.2]},
}
fork = multiprocessing.get_context("fork")  # a new interpreter would need seconds to import torch


def toy_study(**changes: Any) -> StudyConfig:
    arm = {"name": "arm", "method": "full", "learning_rates": [1e-3]}
    values = {
        "name": "toy",
        "base": small_values("no-model", arms=[arm]),
        "search": SEARCH,
        "objectives": [{"figure": "gain", "direction": "maximize"}],
        "sampler": "grid",
    }
    return parse_study(values | changes)


def open_store(folder: Path, **changes: Any) -> Store:
    store = Store(f"sqlite:///{folder / 'optuna.db'}", toy_study(**changes))
    store.begin()
    return store


def value(picks: dict[str, Any]) -> float:
    return float(picks["training.steps"] - picks["rate"])


def logging_run(log: Path, seconds: float = 0.02) -> Run:
    """Notes `begin N` and `end N`, lines that a kill cannot take back."""

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        _note(log, f"begin {number}")
        time.sleep(seconds)
        _note(log, f"end {number}")
        return TrialOutcome([value(picks)], runs=[{"seed": 0, "picks": picks}])

    return run


def start_workers(url: str, config: StudyConfig, run: Run, count: int) -> list[Any]:
    def work() -> None:
        Store(url, config).work(run, lambda text: None)
        os._exit(0)  # a fork must not run pytest's own ending

    workers = [fork.Process(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    return workers


class Forked:
    """A worker as `keep_working` starts one: what it asks of a Popen."""

    def __init__(self, store: Store, run: Run) -> None:
        [self.process] = start_workers(store.url, store.config, run, 1)
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode  # type: ignore[no-any-return]

    def poll(self) -> int | None:
        return self.returncode


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.02)


def holds(store: Store, worker: Any) -> bool:
    """Whether the worker has claimed a trial that has not ended."""
    running = [t for t in store.study.get_trials() if t.state.name == "RUNNING"]
    return any(t.user_attrs.get("owner", {}).get("pid") == str(worker.pid) for t in running)


def kill(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join()


def _note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(line + "\n")


RANGES = {
    "rate": {"kind": "float", "path": "arms.0.learning_rates.0", "low": 1e-4, "high": 1e-1, "log": True},
    "training.steps": {"kind": "int", "low": 1, "high": 8},
    "training.schedule": {"kind": "choice", "values": ["linear", "cosine"]},
}


def quiet(text: str) -> None:
    pass


def begun(log: Path) -> int:
    return log.read_text().count("begin")


class NoTracker:
    """MLflow needs seconds to make its store, and is not what is tested here."""

    id = "none"

    def __init__(self, *_: object) -> None:
        self.journal = self

    @contextmanager
    def run(self, *_: object, **__: object) -> Iterator[NoTracker]:
        yield self

    def reap(self, *_: object) -> None:
        pass

    def run_url(self, run_id: str) -> str:
        return ""

    def changed_versions(self) -> str:
        return ""

    log_metrics = log_file = log_text = log_note = set_tags = fail = send_missing = reap


def dying(how: Callable[[], None], numbers: tuple[int, ...] = (3,)) -> Run:
    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        if number in numbers:
            how()
        return TrialOutcome([value(picks)])

    return run


def run_at_rate(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
    return TrialOutcome([picks["rate"]])


RANGE = {"rate": {"kind": "float", "path": "arms.0.learning_rates.0", "low": 1e-4, "high": 1e-1}}

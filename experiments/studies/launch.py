"""Start a study, or join it: workers on this machine, the study's MLflow run around them.

Each worker is a process of its own that takes trials from the storage until none is left. Another machine joins with
the same command and the same storage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from experiments.records import read_json, write_json, write_text
from experiments.run import default_root
from experiments.studies.afterwards import run_posthoc
from experiments.studies.config import StudyConfig, StudyError
from experiments.studies.engine import Store, check_options
from experiments.studies.trial import run_trial
from experiments.tracking.tracking import Tracker

UNFINISHED = "workers ended before the trials did: the same command goes on"
Say = Callable[[str], None]


def run_study(
    config: StudyConfig, root: Path | None = None, workers: int = 1, storage: str | None = None, say: Say = print
) -> Store:
    """Run what is left of a study, with `workers` processes. Raises ConfigError and StudyError; see Store for results.

    One worker runs in this process. storage: an RDB URL instead of the study's own or `optuna.db` in root.
    """
    if workers < 1:
        raise StudyError(f"workers must be at least 1, but got {workers}")
    check_options(config)
    root = (root or default_root()).resolve()
    store = Store(storage_url(root, storage or config.storage), config)
    store.begin()
    folder = study_folder(root, config.name)
    write_text(folder / "study.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    tracker = Tracker(root, config.name)
    tracker.reap()
    with tracker.run(config.name, kind="study", params=_params(config), run_id=_mlflow_run(folder)) as run:
        write_json(folder / "mlflow.json", {"run_id": run.id})
        say(f"{config.name}: {_before(store)}, {workers} worker{'s' if workers > 1 else ''}")
        ended = work(store, root, say) if workers == 1 else _processes(store, root, folder, workers, say)
        counts = Counter(trial.state for trial in store.trials())
        run.log_metrics({f"trials/{state}": n for state, n in counts.items()})
        say(f"{config.name}: {ended}; " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
        if ended.startswith("stopped"):
            run.fail(ended)
            raise StudyError(f"{ended}\nThe same command goes on with the other trials.")
        if ended == UNFINISHED:
            run.fail(ended)
            raise StudyError(ended)
        run_posthoc(config, store.trials(), root, say)
    return store


def work(store: Store, root: Path, say: Say) -> str:
    """Take trials until none is left; returns why it ended."""
    parent = _mlflow_run(study_folder(root, store.config.name))
    return store.work(
        lambda number, picks, report: run_trial(store.config, number, picks, root, parent, report, say), say
    )


def study_folder(root: Path, name: str) -> Path:
    return root / "studies" / name


def storage_url(root: Path, storage: str | None) -> str:
    """The storage asked for, or `optuna.db` in root. Raises StudyError for a SQLite file in a folder that is not there:
    a mistyped path would otherwise begin a second, empty study."""
    if storage and storage.startswith("sqlite:///"):
        folder = Path(storage.removeprefix("sqlite:///")).parent
        if not folder.is_dir():
            raise StudyError(f"--storage {storage}: there is no folder {folder}; make it, or correct the path")
    return storage or f"sqlite:///{root.resolve() / 'optuna.db'}"


def _processes(store: Store, root: Path, folder: Path, workers: int, say: Say) -> str:
    """Workers as processes; those that die are told, and their trials are queued by whoever claims next."""
    command = [sys.executable, "-m", "experiments.cli", "study", str(folder / "study.yaml"), "--worker"]
    command += ["--root", str(root), "--storage", store.url]
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    running = [subprocess.Popen(command, env={"OMP_NUM_THREADS": threads, **os.environ}) for _ in range(workers)]
    try:
        codes = [process.wait() for process in running]
    except BaseException:  # Ctrl-C has reached the workers too; SIGTERM has not
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        raise
    for code in codes:
        if code < 0:
            say(f"a worker was ended by {signal.Signals(-code).name}; the next start continues its trial")
        elif code:
            say(f"a worker ended with exit code {code}; its message stands above")
    lost = any(codes) and store.going_on()  # with all well it is another machine that goes on
    return UNFINISHED if lost else store.ended() or UNFINISHED


def _before(store: Store) -> str:
    """How many trials there are already, and how many there will be."""
    trials, limit = store.trials(), store.limit()
    done = sum(trial.state in ("complete", "pruned", "failed") for trial in trials)
    return f"{done} of {limit} trials done" if limit is not None else f"{done} trials done"


def _mlflow_run(folder: Path) -> str | None:
    return read_json(folder / "mlflow.json").get("run_id")


def _params(config: StudyConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {key: values[key] for key in ("question", "sampler", "pruner", "seeds", "objectives", "budget")}

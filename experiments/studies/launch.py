"""Start a study or join it: start workers on this machine, inside the study's MLflow run.

Each worker is a process that claims trials from the storage until none is left. Another machine joins with the same
command and the same storage.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.common.errors import StudyError
from experiments.common.files import read_note, write_json, write_text
from experiments.common.paths import root_folder, short_path
from experiments.common.printable import escaped
from experiments.common.signals import sigterm_raises
from experiments.common.yaml_values import dump_yaml
from experiments.studies.agree import agree
from experiments.studies.config import StudyConfig
from experiments.studies.exchange import read_trials, unpack_runs, unpacked
from experiments.studies.fetch import fetch_runs
from experiments.studies.locks import STORAGE_FAULTS
from experiments.studies.missing import send_trials
from experiments.studies.optimizers import check_options, waiting
from experiments.studies.posthoc import apply_posthoc
from experiments.studies.queue import Store
from experiments.studies.report.table import progress_text
from experiments.studies.space import Scalar
from experiments.studies.storage import note_progress, public_yaml, storage_url, study_folder
from experiments.studies.trial import ShouldPrune, run_trial, steps_done
from experiments.studies.trial_results import TrialOutcome
from experiments.studies.workers import ends_with_parent, worker_starter
from experiments.tracking.machine import process_state, process_tags
from experiments.tracking.tracker import Tracker

UNFINISHED = "workers ended before the trials did: the same command continues"
MAX_WORKERS = 1000  # of one machine
POLL = 0.1  # seconds between two checks of the workers
IDLE_DEATHS = 3  # so many workers in a row that died without a trial are one too many
Say = Callable[[str], None]


def run_study(
    config: StudyConfig,
    root: Path | None = None,
    workers: int | None = None,
    storage: str | None = None,
    say: Say = print,
    known: Path | None = None,
    devices: Sequence[str] = (),
) -> Store:
    """Run the trials of a study that are left. Results: `Store.trials`. Raises ConfigError and StudyError.

    workers: number of processes; one that is killed is replaced. None: all trials run in this process. storage: a
    database URL in place of the study's own, or of `optuna.db` in root. known: a folder with `trials.tar.xz`, whose
    trials are not run again. devices: the GPU of each worker (`workers.worker_places`), in place of `workers`.
    """
    workers = len(devices) or workers
    root = root_folder(root)
    found = read_trials(config, known) if known else []
    store = Store(check_start(config, root, workers, storage), config)
    store.progress = functools.partial(steps_done, config, root)
    if known:
        unpack_runs(known, root)
    fitting = [trial for trial in found if unpacked(trial, root)]
    taken = store.begin(fitting)
    if known:
        say(f"{config.name}: {taken} of the {len(found)} trials in {short_path(known)} are taken from there")
    if odd := len(found) - len(fitting):
        say(f"{config.name}: {odd} are not taken: their run folders were there, with other results or none")
    folder = study_folder(root, config.name)
    write_text(folder / "study.yaml", dump_yaml(config.to_dict()), private=config.storage is not None)
    note_progress(store, root)
    tracker = Tracker(root, config.name)
    tracker.reap()
    with sigterm_raises(), _study_run(tracker, config, folder) as run:
        if changed := run.changed_versions():
            say(f"{config.name} began with {changed}: its trials may differ for that")
        send_trials(config, store.trials(), root, tracker, say)
        if not (ended := store.ended()):
            for line in waiting(config, store.limit()):
                say(f"{config.name}: {line}")
            say(f"{config.name}: {_before(store)}, {workers or 1} worker{'s' if (workers or 1) > 1 else ''}")
            ended = (
                _processes(store, root, folder, devices or [""] * workers, say) if workers else work(store, root, say)
            )
        note_progress(store, root)
        counts = Counter(trial.state for trial in store.trials())
        run.log_metrics({f"trials/{state}": n for state, n in counts.items()})
        say(f"{config.name}: {ended}; " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
        if ended.startswith("stopped"):
            run.fail(ended)
            raise StudyError(f"{ended}\nThe same command continues with the other trials.")
        if ended == UNFINISHED:
            run.fail(ended)
            raise StudyError(ended)
        if config.posthoc:  # whose arms are chosen by their records
            fetch_runs(config, store.trials(), root, say)
        apply_posthoc(config, store.trials(), root, say)
    return store


def check_start(config: StudyConfig, root: Path, workers: int | None, storage: str | None) -> str:
    """Return the URL of the storage; for arguments see `run_study`. Nothing is made.

    Raises ConfigError or StudyError for a sampler, a pruner, a number of workers or a storage that cannot be.
    """
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise StudyError(f"workers must be 1 to {MAX_WORKERS}, but got {workers}")
    check_options(config)
    return storage_url(root, storage or config.storage)


@contextlib.contextmanager
def _study_run(tracker: Tracker, config: StudyConfig, folder: Path) -> Iterator[Any]:
    """Open the study's MLflow run. If another process on this machine has it open, yield one without effect: a study
    has one run, which ends once."""
    note = folder / "mlflow.json"

    def write_note(run_id: str) -> None:
        write_json(note, {"run_id": run_id, "owner": process_tags()})

    run = None
    with contextlib.ExitStack() as opened:
        with FileLock(f"{folder}.lock"):  # two that start at the same moment would both find no owner
            owner = read_note(note).get("owner", {})
            joins = process_state(owner) and owner["pid"] != str(os.getpid())
            if not joins:
                run = opened.enter_context(
                    tracker.run(
                        config.name,
                        kind="study",
                        params=_params(config),
                        run_id=_mlflow_run(folder),
                        note=write_note,
                    )
                )
        if run is None:
            yield _NoRun()
            return
        run.log_text(public_yaml(config), "study.yaml")
        run.log_note(escaped(config.question or _description(config)))
        try:
            yield run
        finally:
            write_json(note, {"run_id": run.id})


def _description(config: StudyConfig) -> str:
    """Say what a study without a question searches, and for what."""
    aims = " and ".join(f"{o.figure} ({o.better})" for o in config.objectives)
    return f"Searches {', '.join(config.search)} for {aims}."


class _NoRun:
    def changed_versions(self) -> str:
        return ""

    def log_metrics(self, metrics: Any) -> None: ...

    def fail(self, reason: str) -> None: ...


def work(store: Store, root: Path, say: Say) -> str:
    """Claim and run trials until none is left. Returns the reason of the end."""
    parent = _mlflow_run(study_folder(root, store.config.name))

    def run(number: int, picks: dict[str, Scalar], should_prune: ShouldPrune | None) -> TrialOutcome:
        note_progress(store, root)
        say(progress_text(store))
        own = functools.partial(agree, store, root, seen={})
        return run_trial(store.config, number, picks, root, parent, should_prune, say, own)

    store.progress = functools.partial(steps_done, store.config, root)
    with ends_with_parent():
        return store.work(run, say)


def keep_working(store: Store, start: Callable[[], Any], workers: int, say: Say = print) -> str:
    """Start workers, and replace each that a signal ends, until no trial is left to claim.

    start: returns a worker, with the methods of a Popen. A worker that ends with an exit code has written the reason,
    and is not replaced; nor is the last of IDLE_DEATHS in a row that had no trial. Returns the reason of the study's
    end, or UNFINISHED.
    """
    running, unclean, idle = [start() for _ in range(workers)], False, 0
    try:
        while running:
            ended = next((worker for worker in running if worker.poll() is not None), None)
            if ended is None:
                time.sleep(POLL)
                continue
            running.remove(ended)
            if not ended.returncode:
                continue
            idle = 0 if _had_trial(store, ended) else idle + 1
            if _replaces(store, ended, idle, say):
                running.append(start())
            else:
                unclean = True
    except BaseException:  # Ctrl-C reaches the workers too; SIGTERM does not
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.wait()
        raise
    lost = unclean and store.going_on()  # if no worker failed, another machine runs the rest
    return UNFINISHED if lost else store.ended() or UNFINISHED


def _had_trial(store: Store, worker: Any) -> bool:
    """Write to the storage how a worker ended. Returns whether it had a trial."""
    with contextlib.suppress(*STORAGE_FAULTS):
        return store.worker_died(worker.pid, worker.returncode)
    return False


def _replaces(store: Store, worker: Any, idle: int, say: Say) -> bool:
    """Say how a worker ended, and return whether to start another. idle: deaths in a row without a trial."""
    code, again = worker.returncode, False
    with contextlib.suppress(*STORAGE_FAULTS):
        again = code < 0 and idle < IDLE_DEATHS and not store.ended()
    if code > 0:
        say(f"a worker ended with exit code {code}; its message is above")
    else:
        say(f"a worker was ended by {signal.Signals(-code).name}" + ("; another one takes its place" if again else ""))
    return again


def _processes(store: Store, root: Path, folder: Path, places: Sequence[str], say: Say) -> str:
    return keep_working(store, worker_starter(folder / "study.yaml", root, store.url, places), len(places), say)


def _before(store: Store) -> str:
    """Return how many trials are done, and of how many: a budget may be of some cells of a grid, or of more."""
    limit, cells, budget = store.limit(), store.cells, store.config.budget.trials
    done = sum(trial.state in ("complete", "pruned", "failed") for trial in store.trials())
    if limit is None:
        return f"{done} trials done"
    said = f"{done} of {limit} trials done"
    if cells and limit < cells:
        return f"{said}, the first of the grid's {cells} cells (the last dimension varies fastest)"
    if cells and budget and budget > cells:
        return f"{said} (budget.trials={budget}, but the grid has {cells} cells)"
    return said


def _mlflow_run(folder: Path) -> str | None:
    return read_note(folder / "mlflow.json").get("run_id")


def _params(config: StudyConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {key: values[key] for key in ("question", "sampler", "pruner", "seeds", "objectives", "budget")}

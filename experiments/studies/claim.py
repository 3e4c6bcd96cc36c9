"""One claimed trial: its heartbeat, its run, and how it ends in Optuna's storage.

Optuna's own loop (`Study.optimize`) knows no trial that another machine took over, and no storage that fails.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from experiments.studies.space import Scalar
from experiments.studies.trial import TrialFailed, TrialOutcome, TrialPruned

STORAGE_FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
ACTIVE: set[int] = set()  # ids of the trials that this process runs
Say = Callable[[str], None]
Report = Callable[[int, float], bool]
Run = Callable[[int, dict[str, Scalar], Report | None], TrialOutcome]
End = tuple[TrialState, list[float] | None, dict[str, Any]]  # with values, and what is noted on the trial


@contextlib.contextmanager
def heartbeat(storage: optuna.storages.RDBStorage, trial: optuna.Trial, seconds: float) -> Iterator[None]:
    """Optuna's, but it outlives a write that fails. The trial is among ACTIVE meanwhile."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(*STORAGE_FAULTS):
                storage.record_heartbeat(trial._trial_id)
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    ACTIVE.add(trial._trial_id)
    try:
        yield
    finally:
        ACTIVE.discard(trial._trial_id)
        ended.set()
        thread.join()


def run_claimed(trial: optuna.Trial, number: int, picks: dict[str, Scalar], run: Run, prunes: bool, say: Say) -> None:
    """Run a trial and tell the storage how it ended. number: of its first attempt. Raises what run raises, except
    TrialFailed and TrialPruned; the attempt then counts as stopped from outside, where that can still be noted."""
    say(f"trial {number}: " + ", ".join(f"{key}={pick}" for key, pick in picks.items()))
    try:
        _end(trial, *_result(trial, number, picks, run, prunes, say))
    except UpdateFinishedTrialError:  # this machine was silent for too long
        say(f"trial {number} was taken over by another worker meanwhile: what this one measured does not count")
    except BaseException:
        with contextlib.suppress(UpdateFinishedTrialError, *STORAGE_FAULTS):  # the first error is the one to tell
            _end(trial, TrialState.FAIL, None, {"interrupted": trial.number})
        raise


def _result(trial: optuna.Trial, number: int, picks: dict[str, Scalar], run: Run, prunes: bool, say: Say) -> End:
    def report(step: int, value: float) -> bool:
        with contextlib.suppress(UpdateFinishedTrialError, *STORAGE_FAULTS):  # not pruned here, then
            trial.report(value, step)
            return trial.should_prune()
        return False

    try:
        outcome = run(number, picks, report if prunes else None)
    except TrialPruned as pruned:
        return TrialState.PRUNED, None, {"runs": pruned.outcome.runs, "pruned": str(pruned)}
    except TrialFailed as failure:
        say(f"trial {number} failed: {failure}")
        return TrialState.FAIL, None, {"runs": failure.runs, "reason": str(failure)}
    for key, value in outcome.constraints.items():
        trial.set_constraint(key, value)
    return TrialState.COMPLETE, outcome.values, {"runs": outcome.runs}


def _end(trial: optuna.Trial, state: TrialState, values: list[float] | None, notes: dict[str, Any]) -> None:
    for key, value in notes.items():
        trial.set_user_attr(key, value)
    trial.study.tell(trial, values, state=state, skip_if_finished=True)

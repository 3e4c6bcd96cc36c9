"""Run one claimed trial: send its heartbeat, and write its end to Optuna's storage.

Optuna's own loop (`Study.optimize`) does not handle a trial that another machine took over, or a storage that fails.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from experiments.studies.artifacts import attach_pictures
from experiments.studies.locks import STORAGE_FAULTS
from experiments.studies.space import Scalar
from experiments.studies.trial import ShouldPrune, TrialFailed, TrialPruned
from experiments.studies.trial_results import TrialOutcome
from experiments.studies.trials import RUNS, SECONDS

ACTIVE: set[int] = set()  # ids of the trials that this process runs
Say = Callable[[str], None]
RunTrial = Callable[[int, dict[str, Scalar], ShouldPrune | None], TrialOutcome]
End = tuple[TrialState, list[float] | None, dict[str, Any]]  # state, values of the objectives, attributes


@contextlib.contextmanager
def heartbeat(storage: optuna.storages.RDBStorage, trial: optuna.Trial, seconds: float) -> Iterator[None]:
    """Write the trial's heartbeat every few seconds, until the block ends. A write that fails is skipped.

    Optuna's own heartbeat ends at the first such write. Inside the block the trial is in ACTIVE.
    """
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


def next_attempt(trial: Any) -> Any:
    """Return an attempt to queue, with the same picks. Its history has the key of Optuna's own retries."""
    history = [*trial.system_attrs.get("retry_history", ()), trial.number]
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={**{k: v for k, v in trial.system_attrs.items() if k != RUNS}, "retry_history": history},
    )


def run_claimed(
    trial: optuna.Trial, number: int, picks: dict[str, Scalar], run: RunTrial, prunes: bool, say: Say
) -> None:
    """Run a trial, and write to the storage how it ended. number: of its first attempt.

    Raises what `run` raises, except TrialFailed and TrialPruned. The attempt then counts as stopped from outside, if
    the storage still accepts that note.
    """
    say(f"trial {number}: " + ", ".join(f"{key}={pick}" for key, pick in picks.items()))
    began = time.monotonic()
    try:
        state, values, notes = _result(trial, number, picks, run, prunes, say)
        _end(trial, state, values, notes | {SECONDS: time.monotonic() - began})
    except UpdateFinishedTrialError:  # no heartbeat of this machine arrived for too long
        say(f"trial {number} was taken over by another worker: the results of this one do not count")
    except BaseException:
        with contextlib.suppress(UpdateFinishedTrialError, *STORAGE_FAULTS):  # the first error is the one to report
            _end(trial, TrialState.FAIL, None, {"interrupted": trial.number})
        raise


def _result(trial: optuna.Trial, number: int, picks: dict[str, Scalar], run: RunTrial, prunes: bool, say: Say) -> End:
    def should_prune(step: int, value: float) -> bool:
        with contextlib.suppress(UpdateFinishedTrialError, *STORAGE_FAULTS):
            trial.report(value, step)
            return trial.should_prune()
        return False  # without the storage no trial is pruned

    try:
        outcome = run(number, picks, should_prune if prunes else None)
    except TrialPruned as pruned:
        return TrialState.PRUNED, None, {RUNS: pruned.outcome.runs, "pruned": str(pruned), "mlflow": pruned.outcome.url}
    except TrialFailed as failure:
        say(f"trial {number} failed: {failure}")
        return TrialState.FAIL, None, {RUNS: failure.runs, "reason": str(failure)}
    for key, value in outcome.constraints.items():
        trial.set_constraint(key, value)
    _show(trial, number, outcome)
    return TrialState.COMPLETE, outcome.values, {RUNS: outcome.runs, **outcome.figures, "mlflow": outcome.url}


def _show(trial: optuna.Trial, number: int, outcome: TrialOutcome) -> None:
    """Write the note and attach the pictures that optuna-dashboard shows on the trial's page, if it is installed."""
    with contextlib.suppress(ImportError, *STORAGE_FAULTS):
        from optuna_dashboard import save_note

        figures = [f"- {name}: {value:.4g}" for name, value in outcome.figures.items()]
        folders = [f"- seed {run['seed']}: `{run['folder']}`" for run in outcome.runs if "folder" in run]
        link = [f"[Trial {number} in MLflow]({outcome.url}) (start it with `control-llm ui`)"] if outcome.url else []
        save_note(trial, "\n".join([*link, "", *figures, "", "Folders below the root:", "", *folders]))
        if outcome.root:
            attach_pictures(trial, outcome.root, outcome.pictures)


def _end(trial: optuna.Trial, state: TrialState, values: list[float] | None, notes: dict[str, Any]) -> None:
    for key, value in notes.items():
        if key == RUNS:
            trial.storage.set_trial_system_attr(trial._trial_id, key, value)
        else:
            trial.set_user_attr(key, value)
    trial.study.tell(trial, values, state=state, skip_if_finished=True)

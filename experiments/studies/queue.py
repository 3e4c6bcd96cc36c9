"""Use Optuna's storage as a queue of trials: claims, retries of dead trials, budgets.

A worker claims a trial while it holds the storage's lock. It then also cleans up: a running trial whose process is gone
is marked as failed and queued again with the same picks, so that it continues in its own folders. A process of the same
machine is looked up, whatever its heartbeat says; a trial of another machine is dead when its heartbeat (Optuna's)
stops (`silence`). Nothing depends on the last write of a killed process: the next claim completes what it left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from experiments.common.errors import ConfigError, StudyError
from experiments.studies import optimizers
from experiments.studies.claim import ACTIVE, RunTrial, heartbeat, next_attempt, run_claimed
from experiments.studies.config import StudyConfig
from experiments.studies.locks import (
    LOCKED,
    STORAGE_FAULTS,
    claim_lock,
    public_values,
    shown,
    storage_fault,
)
from experiments.studies.opening import check_may_begin, open_study
from experiments.studies.silence import Silence
from experiments.studies.space import MAX_CELLS, Scalar, grid
from experiments.studies.trial import repeated
from experiments.studies.trials import (
    Trial,
    continued,
    died,
    failed,
    lineages,
    origin,
    picks_of,
    seconds,
    stopped_by,
    trial_row,
    used_up,
)
from experiments.tracking.machine import process_state, process_tags

Progress = Callable[[int, dict[str, Scalar]], int]  # gets the number of a trial's first attempt and its picks
POLL = 1.0  # seconds between two looks at a heartbeat
GOING_ON = ("running", "lost", "stopped")  # states of a trial that has begun and not ended

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Store:
    """A study in a database. Created if it does not exist and a config is given; without a config: StudyError.

    progress: returns how far a trial has come, see `steps_done`; a death with progress does not count.
    """

    def __init__(self, url: str, config: StudyConfig | None = None, name: str = "") -> None:
        self.url = url
        self.storage, self.study, self.config = open_study(url, config, config.name if config else name)
        self.progress: Progress = lambda number, picks: 0
        self.silence = Silence(self.storage, self.study._study_id)
        self.doubtful = False  # whether a trial of another machine may be dead: see `silence`

    def begin(self, known_trials: Sequence[optuna.trial.FrozenTrial] = ()) -> int:
        """Store the config with the study, queue the cells of a grid, and restart the count of failures in a row.

        known_trials: complete trials of another store of this study; those with new picks are added. Returns their
        number.
        """
        with self.lock():
            check_may_begin(self.study, self.config, self.url)
            self.study.set_user_attr("config", public_values(self.config))
            self.study.set_metric_names([objective.figure for objective in self.config.objectives])
            complete = [trial.picks for trial in self.trials() if trial.state == "complete"]
            new = [trial for trial in known_trials if trial.params not in complete]
            for trial in new:
                self.study.add_trial(trial)
            ended = (a for a in lineages(self._tidy()).values() if failed(a, self.config.retries))
            self.study.set_user_attr("forgiven", [attempts[-1].number for attempts in ended])
        return len(new)

    def work(self, run: RunTrial, say: Callable[[str], None] = print) -> str:
        """Run trials until none is left to claim. Returns why it ended. Raises StudyError if the storage fails."""
        try:
            while True:
                with contextlib.ExitStack() as heart, contextlib.ExitStack() as claim:
                    claim.enter_context(self.lock())
                    trials = self._tidy()
                    if ended := self.ended(trials):
                        if not self.doubtful:
                            return ended
                        claim.close()
                        time.sleep(POLL)
                        continue
                    trial = self._ask(len(trials))
                    heart.enter_context(heartbeat(self.storage, trial, self.config.heartbeat))
                    picks = {key: dimension.suggest(trial, key) for key, dimension in self.config.search.items()}
                    trial.set_user_attr("owner", process_tags())
                    attempt = self._attempts()[trial.number]
                    self._note_progress(attempt, "began_at")
                    claim.close()
                    number = origin(attempt)
                    same = next((t for t in self.trials() if t.state == "complete" and t.picks == picks), None)
                    if same:  # some samplers draw the same picks again: nothing is trained twice
                        trial.set_user_attr("repeats", same.number)
                        say(f"trial {number} has the picks of trial {same.number}, and takes its values")
                    action = repeated(same) if same else run
                    run_claimed(trial, number, picks, action, self.config.pruner is not None, say)
        except STORAGE_FAULTS as error:
            raise StudyError(
                f"the storage {shown(self.url)} failed: {storage_fault(error) or error}\n"
                "Nothing that was recorded is lost: the same command continues when the storage answers again."
            ) from error

    def ended(self, trials: list[Any] | None = None) -> str:
        """Return why there is nothing to claim; empty while there is something."""
        trials = self._attempts() if trials is None else trials
        forgiven = self.study.user_attrs.get("forgiven", ())
        if stopped := stopped_by(trials, self.config.failures, self.config.retries, forgiven):
            return stopped
        budget = self.config.budget
        hours = sum(map(seconds, trials)) / 3600
        if budget.hours is not None and hours >= budget.hours:
            return f"the budget of {budget.hours:g} hours is spent ({hours:.2f})"
        limit = self.limit()
        if not (state := used_up(trials, limit, self.config.retries)):
            return ""
        return f"all {limit} {'cells of the grid' if limit == self.cells else 'trials'} are {state}"

    def going_on(self) -> bool:
        """Whether a trial runs, or was interrupted and will be continued by the next start."""
        return any(trial.state in GOING_ON for trial in self.trials())

    def running(self) -> int:
        """Return the number of trials that run now, on all machines."""
        return sum(trial.state == "running" for trial in self.trials())

    @property
    def cells(self) -> int | None:
        """Return the number of cells of a grid. None: another sampler."""
        return len(grid(self.config.search)) if self.config.sampler.name == "grid" else None

    def limit(self) -> int | None:
        """Return the number of trials in the budget, with those that were added. None: no such limit."""
        budget, cells = self.config.budget.trials, self.cells
        if budget is None:
            return cells
        whole = budget + self.study.user_attrs.get("added", 0)
        return whole if cells is None else min(cells, whole)

    def add_trials(self, count: int) -> int:
        """Raise the budget by `count` trials. Returns the new budget."""
        if not 1 <= count <= MAX_CELLS:
            raise ConfigError(f"the number of trials to add must be 1 to {MAX_CELLS}, but got {count}")
        if self.config.budget.trials is None:
            raise StudyError(
                f"study {self.config.name!r} has no budget of trials to raise: it is a whole grid, or has only hours"
            )
        if self.limit() == self.cells:
            raise StudyError(f"study {self.config.name!r} has all {self.cells} cells of its grid: none is left")
        with self.lock():
            self.study.set_user_attr("added", self.study.user_attrs.get("added", 0) + count)
        return self.limit() or 0

    def trials(self) -> list[Trial]:
        """Return all trials by number. A trial that was continued is one trial."""
        groups, silent = sorted(lineages(self._attempts()).items()), self.silence.old()
        return [trial_row(a, self.config.retries, self._gone(a[-1], silent)) for _, a in groups]

    def front(self) -> list[int]:
        """Return the number of the best feasible trial, or the numbers of the Pareto front."""
        return sorted(origin(trial) for trial in self.study.best_trials)

    def importances(self) -> dict[str, dict[str, float]]:
        """Return objective -> dimension -> share of its variance. Empty below four complete trials."""
        return optimizers.importances(self.study, self.config)

    def worker_died(self, pid: int, code: int) -> bool:
        """Write to the trial of a worker on this machine how the worker ended. Returns whether it had a trial.

        code: as in subprocess: minus the number of a signal, or an exit code, with which the worker stopped by itself.
        """
        with self.lock():
            lost = [t for t in self._attempts() if t.state == TrialState.RUNNING or died(t)]
            owners = [t.user_attrs.get("owner", {}) for t in lost]
            gone = [owner.get("pid") == str(pid) and process_state(owner) is False for owner in owners]
            owned = list(itertools.compress(lost, gone))
            for trial in owned:
                note = ("ended_by", signal.Signals(-code).name) if code < 0 else ("interrupted", trial.number)
                with contextlib.suppress(UpdateFinishedTrialError):  # another worker noticed it first
                    self.storage.set_trial_user_attr(trial._trial_id, *note)
            self._tidy()
        return bool(owned)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Return the lock that is held while a trial is claimed."""
        return claim_lock(self.url, self.storage.engine)

    def _ask(self, number: int) -> optuna.Trial:
        self.study.sampler = optimizers.sampler(self.config, number)
        self.study.pruner = optimizers.pruner(self.config)
        with warnings.catch_warnings():  # it recommends study.optimize, which does not know why a trial ended
            warnings.filterwarnings("ignore", "Heartbeat of storage")
            return self.study.ask()

    def _tidy(self) -> list[Any]:
        """Mark trials whose process is gone as failed, queue them again, and queue missing cells of a grid.

        The caller holds the lock. Returns all attempts.
        """
        trials = self._attempts()
        running = [t for t in trials if t.state == TrialState.RUNNING]
        unknown = {t._trial_id for t in running if process_state(t.user_attrs.get("owner", {})) is None}
        old = self.silence.old() & unknown
        silent = self.silence.confirmed(old)
        self.doubtful = bool(old - silent)
        for trial in running:
            # A trial without an owner: its process died while it held the lock.
            if self._gone(trial, silent) or (self._exclusive and "owner" not in trial.user_attrs):
                with contextlib.suppress(UpdateFinishedTrialError):  # another machine ended it
                    self._note_progress(trial, "reached")
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        for attempts in lineages(self._attempts()).values():
            if continued(attempts, self.config.retries):
                self.study.add_trial(next_attempt(attempts[-1]))
        if self.config.sampler.name == "grid":
            wanted, cells = grid(self.config.search)[: self.limit()], lineages(trials).values()
            known = [attempts[0].system_attrs.get("fixed_params") for attempts in cells]
            for cell in wanted if len(known) < len(wanted) else ():
                if cell not in known:
                    self.study.enqueue_trial(cell)
        return self._attempts()

    def _note_progress(self, trial: Any, name: str) -> None:
        """Write to an attempt how far its trial has come."""
        steps = self.progress(origin(trial), picks_of(trial))
        self.storage.set_trial_user_attr(trial._trial_id, name, steps)

    def _gone(self, trial: Any, silent: set[int]) -> bool:
        """Whether a trial is RUNNING, but its process is not. On another machine the heartbeat decides."""
        if trial.state != TrialState.RUNNING:
            return False
        owner = trial.user_attrs.get("owner", {})
        alive = process_state(owner)
        if alive and owner["pid"] == str(os.getpid()):  # a notebook's process goes on after its storage failed
            alive = trial._trial_id in ACTIVE
        return trial._trial_id in silent if alive is None else not alive

    def _attempts(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    @property
    def _exclusive(self) -> bool:
        return self.storage.engine.dialect.name in LOCKED

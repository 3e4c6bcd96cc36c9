"""Optuna, and the only file that imports it: storage, claims, retries of dead trials, samplers, pruners, importances.

A trial is claimed under a lock of the storage. Who holds the lock also clears up: a running trial whose process is
gone is marked failed and queued again with the same picks, so that it continues in its own folders. Trials of other
machines count as dead when their heartbeat (Optuna's) stops. Nothing here depends on the last write of a process that
was killed: whatever it left half done is found and finished by the next claim.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState

from experiments.section import ConfigError, nearest
from experiments.studies.attempts import Trial, deaths, died, failed, lineages, origin, trial_row
from experiments.studies.config import StudyConfig, StudyError
from experiments.studies.locks import LOCKED, claim_lock, engine_options, file_lock, shown
from experiments.studies.reading import parse_study
from experiments.studies.space import Scalar, grid
from experiments.studies.trial import TrialFailed, TrialOutcome, TrialPruned
from experiments.tracking.machine import process_alive, process_tags

SAMPLERS: dict[str, Any] = {
    "grid": optuna.samplers.RandomSampler,  # never asked: all cells are queued when the study is made
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS: dict[str, Any] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "threshold": optuna.pruners.ThresholdPruner,
}
Run = Callable[[int, dict[str, Scalar], Callable[[int, float], bool] | None], TrialOutcome]

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Store:
    """A study in an RDB storage. Made where it does not exist and a config is given; raises StudyError otherwise."""

    def __init__(self, url: str, config: StudyConfig | None = None, name: str = "") -> None:
        self.url = url
        heartbeat = config.heartbeat if config else 60
        name = config.name if config else name
        try:
            with file_lock(url):
                self.storage = optuna.storages.RDBStorage(
                    url, engine_kwargs=engine_options(url), heartbeat_interval=heartbeat, grace_period=2 * heartbeat
                )
            if config is None:
                names = optuna.get_all_study_names(self.storage)
                if name not in names:
                    raise StudyError(f"no study {name!r} in {shown(url)}: {nearest(name, names)}")
                self.study = optuna.load_study(study_name=name, storage=self.storage)
                config = parse_study(self.study.user_attrs["config"], source=f"study {name}")
            else:
                self.study = optuna.create_study(
                    storage=self.storage,
                    study_name=name,
                    directions=[objective.direction for objective in config.objectives],
                    load_if_exists=True,
                )
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            raise StudyError(f"the storage {shown(url)} cannot be used: {str(error).splitlines()[0]}") from error
        self.config = config

    def begin(self) -> None:
        """Keep the config with the study, queue a grid's cells, and forget earlier failures in a row."""
        with self.lock():
            known = self.study.user_attrs.get("config")
            if known and parse_study(known).identity() != self.config.identity():
                raise ConfigError(
                    f"study {self.config.name!r} in {shown(self.url)} was started from another config: give this one "
                    "another name (budget, retries, failures, heartbeat, report and storage may change)"
                )
            self.study.set_user_attr("config", self.config.to_dict())
            self.study.set_user_attr("forgiven", [trial.number for trial in self._tidy() if failed(trial)])

    def work(self, run: Run, say: Callable[[str], None] = print) -> str:
        """Run trials until none is left to claim. Returns why it ended."""
        while True:
            with contextlib.ExitStack() as held:
                held.enter_context(self.lock())
                trials = self._tidy()
                if ended := self.ended(trials):
                    return ended
                # A sampler of its own per trial: reproducible, and different in workers that start together.
                self.study.sampler = _sampler(self.config, len(trials))
                self.study.pruner = _pruner(self.config)
                objective = self._objective(run, held.close, say)
                self.study.optimize(objective, n_trials=1, catch=(TrialFailed,))

    def ended(self, trials: list[Any] | None = None) -> str:
        """Why there is nothing to claim; empty while there is."""
        trials = self._attempts() if trials is None else trials
        row = self._failures_in_a_row(trials)
        if row >= self.config.failures:
            last = max((t for t in trials if failed(t)), key=lambda t: (t.datetime_complete, t.number))
            return f"stopped: {row} trials in a row failed, the last with: {last.user_attrs['reason']}"
        budget = self.config.budget
        hours = sum(t.duration.total_seconds() for t in trials if t.duration and not died(t)) / 3600
        if budget.hours is not None and hours >= budget.hours:
            return f"the budget of {budget.hours:g} hours is spent ({hours:.2f})"
        if any(t.state == TrialState.WAITING for t in trials):
            return ""
        if self.config.sampler.name == "grid":
            return "all cells of the grid are claimed"
        limit = self.limit()
        return "" if limit is None or len(lineages(trials)) < limit else f"all {limit} trials are claimed"

    def going_on(self) -> bool:
        """Whether a trial runs, or was lost with its process and will be continued by the next start."""
        groups = lineages(self._attempts()).values()
        return any(
            attempts[-1].state == TrialState.RUNNING or (died(attempts[-1]) and deaths(attempts) <= self.config.retries)
            for attempts in groups
        )

    def limit(self) -> int | None:
        """Trials of the budget, with those that were added."""
        added, budget = self.study.user_attrs.get("added", 0), self.config.budget.trials
        if self.config.sampler.name == "grid":
            cells = len(grid(self.config.search))
            return cells if budget is None else min(cells, budget + added)
        return None if budget is None else budget + added

    def add_trials(self, count: int) -> int:
        """Raise the budget by count; returns the number of trials that it is then."""
        if self.config.budget.trials is None:
            raise StudyError(
                f"study {self.config.name!r} has no budget of trials: it is a whole grid, or has hours only"
            )
        with self.lock():
            self.study.set_user_attr("added", self.study.user_attrs.get("added", 0) + count)
        return self.limit() or 0

    def _failures_in_a_row(self, trials: list[Any]) -> int:
        """Of the trials that ended by themselves, latest first, those that failed since the study was last started."""
        forgiven = set(self.study.user_attrs.get("forgiven", ()))
        ended = [t for t in trials if t.state.is_finished() and not died(t) and t.number not in forgiven]
        ended.sort(key=lambda t: (t.datetime_complete, t.number), reverse=True)
        return len(list(itertools.takewhile(failed, ended)))

    def trials(self) -> list[Trial]:
        """All trials, each once however often it was continued, by number."""
        return [trial_row(attempts) for _, attempts in sorted(lineages(self._attempts()).items())]

    def front(self) -> list[int]:
        """Numbers of the best feasible trial, or of those of the Pareto front."""
        return sorted(origin(trial) for trial in self.study.best_trials)

    def importances(self) -> dict[str, dict[str, float]]:
        """Objective -> dimension -> share of the objective's variance (fANOVA). Empty below four complete trials."""
        complete = [t for t in self.study.trials if t.state == TrialState.COMPLETE]
        found: dict[str, dict[str, float]] = {}
        for i, objective in enumerate(self.config.objectives):
            if len(complete) >= 4 and len({t.values[i] for t in complete}) > 1:
                evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, seed=0)
                found[objective.figure] = optuna.importance.get_param_importances(
                    self.study,
                    evaluator=evaluator,
                    target=lambda trial, i=i: trial.values[i],  # type: ignore[misc]
                )
        return found

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held while a trial is claimed."""
        return claim_lock(self.url, self.storage.engine)

    def _objective(self, run: Run, claimed: Callable[[], None], say: Callable[[str], None]) -> Callable[[Any], Any]:
        def objective(trial: optuna.Trial) -> list[float]:
            picks = {key: dimension.suggest(trial, key) for key, dimension in self.config.search.items()}
            trial.set_user_attr("owner", process_tags())
            claimed()
            number = origin(self._attempts()[trial.number])
            say(f"trial {number}: " + ", ".join(f"{key}={pick}" for key, pick in picks.items()))

            def report(step: int, value: float) -> bool:
                trial.report(value, step)
                return trial.should_prune()

            try:
                outcome = run(number, picks, report if self.config.pruner else None)
                for key, value in outcome.constraints.items():
                    trial.set_constraint(key, value)
            except TrialPruned as pruned:
                trial.set_user_attr("runs", pruned.outcome.runs)
                trial.set_user_attr("pruned", str(pruned))
                raise optuna.TrialPruned(str(pruned)) from pruned
            except TrialFailed as failed:
                trial.set_user_attr("reason", str(failed))
                say(f"trial {number} failed: {failed}")
                raise
            except BaseException:  # stopped from outside: not the trial's fault, so this attempt does not count
                trial.set_user_attr("interrupted", trial.number)
                raise
            trial.set_user_attr("runs", outcome.runs)
            return outcome.values

        return objective

    def _tidy(self) -> list[Any]:
        """Under the lock: fail trials whose process is gone, queue them again, queue missing cells of a grid."""
        optuna.storages.fail_stale_trials(self.study)
        trials = self._attempts()
        for trial in (t for t in trials if t.state == TrialState.RUNNING):
            owner = trial.user_attrs.get("owner")
            # Without an owner it was claimed by a process that died before its lock ended.
            if process_alive(owner) if owner else not self._exclusive:
                continue
            with contextlib.suppress(ValueError):  # ended by another machine meanwhile
                self.study.tell(trial.number, state=TrialState.FAIL)
        again = optuna.storages.RetryHeartbeatStaleTrialCallback()
        for attempts in lineages(self._attempts()).values():
            if died(attempts[-1]) and deaths(attempts) <= self.config.retries:
                again(self.study, attempts[-1])
        if self.config.sampler.name == "grid":
            known = [t.system_attrs.get("fixed_params") for t in trials]
            for cell in grid(self.config.search)[: self.limit()]:
                if cell not in known:
                    self.study.enqueue_trial(cell)
        return self._attempts()

    def _attempts(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    @property
    def _exclusive(self) -> bool:
        return self.storage.engine.dialect.name in LOCKED


def check_options(config: StudyConfig) -> None:
    """Raises ConfigError where the sampler or the pruner does not take its options."""
    for kind, build, table in (("sampler", _sampler, SAMPLERS), ("pruner", _pruner, PRUNERS)):
        named = getattr(config, kind)
        if named is None:
            continue
        known = [name for name in inspect.signature(table[named.name]).parameters if name != "seed"]
        for option in named.options:
            if option not in known:
                raise ConfigError(f"{kind}.options.{option}: {named.name} has no such option; {nearest(option, known)}")
        try:
            build(config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{kind} {named.name!r}: {error}") from error


def _sampler(config: StudyConfig, number: int = 0) -> Any:
    return SAMPLERS[config.sampler.name](seed=config.sampler.seed + number, **config.sampler.options)


def _pruner(config: StudyConfig) -> Any:
    return PRUNERS[config.pruner.name](**config.pruner.options) if config.pruner else optuna.pruners.NopPruner()

"""What Optuna's trials mean here: attempts of one trial, told apart from trials that failed by themselves.

Optuna has no state for "its process died": such a trial is FAIL like one that raised. One that raised has a `reason`
among its user attributes; one that died has none, and its next attempt names it in its history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.studies.space import Scalar


@dataclass
class Trial:
    """A trial with all its attempts. number: of the first one. state: waiting, running, complete, pruned or failed.

    seconds: of the attempts that ended by themselves. runs: one per seed, see `experiments.studies.trial.run_record`.
    """

    number: int
    state: str
    picks: dict[str, Scalar]
    values: list[float] | None
    reason: str
    attempts: int
    seconds: float
    feasible: bool
    runs: list[dict[str, Any]] = field(default_factory=list)


def origin(trial: Any) -> int:
    """Number of the first attempt; Optuna's retry callback keeps the history."""
    history = trial.system_attrs.get("retry_history") or [trial.number]
    return int(history[0])


def lineages(trials: Sequence[Any]) -> dict[int, list[Any]]:
    """Attempts of the same trial, in order, by the number of the first."""
    found: dict[int, list[Any]] = {}
    for trial in trials:
        found.setdefault(origin(trial), []).append(trial)
    return found


def failed(trial: Any) -> bool:
    """Ended by itself, with a reason."""
    return trial.state.name == "FAIL" and "reason" in trial.user_attrs


def died(trial: Any) -> bool:
    """Its process was killed or stopped."""
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def deaths(attempts: Sequence[Any]) -> int:
    """Attempts whose process was lost, without those that were stopped with Ctrl-C or SIGTERM."""
    return sum(died(t) and t.user_attrs.get("interrupted") != t.number for t in attempts)


def trial_row(attempts: Sequence[Any]) -> Trial:
    last = attempts[-1]
    complete = last.state.name == "COMPLETE"
    times = f", {len(attempts)} times" if len(attempts) > 1 else ""
    lost = f"its process died{times}" if died(last) else ""
    return Trial(
        number=origin(last),
        state="failed" if last.state.name == "FAIL" else last.state.name.lower(),
        picks={**last.system_attrs.get("fixed_params", {}), **last.params},
        values=list(last.values) if complete else None,
        reason=last.user_attrs.get("reason") or last.user_attrs.get("pruned") or lost,
        attempts=len(attempts),
        seconds=sum(t.duration.total_seconds() for t in attempts if t.duration and not died(t)),
        feasible=complete and all(value <= 0 for value in last.constraints.values()),
        runs=last.user_attrs.get("runs", []),
    )

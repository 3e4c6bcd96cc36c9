"""What Optuna's trials mean here: attempts of one trial, told apart from trials that failed by themselves.

Optuna has no state for "its process died": such a trial is FAIL like one that raised. One that raised has a `reason`
among its user attributes; one that died has none, and its next attempt names it in its history.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.studies.space import Scalar


@dataclass
class Trial:
    """A trial with all its attempts. number: of the first one.

    state: waiting, running, complete, pruned, failed; lost (its process is gone) or stopped (by hand, or by its
    machine), which the next start continues. seconds: of the attempts that ended by themselves. runs: one per seed, see
    `experiments.studies.trial.run_record`. constraints: satisfied at 0 or below. repeats: the trial with the same picks
    whose runs and values these are.
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
    constraints: dict[str, float] = field(default_factory=dict)
    repeats: int | None = None


def origin(trial: Any) -> int:
    """Number of the first attempt; each attempt after it keeps the numbers of those before."""
    history = trial.system_attrs.get("retry_history") or [trial.number]
    return int(history[0])


def lineages(trials: Sequence[Any]) -> dict[int, list[Any]]:
    """Attempts of the same trial, in order, by the number of the first."""
    found: dict[int, list[Any]] = {}
    for trial in trials:
        found.setdefault(origin(trial), []).append(trial)
    return found


def died(trial: Any) -> bool:
    """Its process was killed or stopped."""
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def interrupted(trial: Any) -> bool:
    """Stopped with Ctrl-C or SIGTERM, or by a fault of the machine, such as a full disk."""
    return bool(trial.user_attrs.get("interrupted") == trial.number)


def deaths(attempts: Sequence[Any]) -> int:
    """Attempts whose process was lost while they ran. One without an owner had not begun."""
    return sum(died(t) and "owner" in t.user_attrs and not interrupted(t) for t in attempts)


def continued(attempts: Sequence[Any], retries: int) -> bool:
    """Whether the last attempt was lost, and the trial is to be tried again."""
    return died(attempts[-1]) and deaths(attempts) <= retries


def failed(attempts: Sequence[Any], retries: int) -> bool:
    """Ended without values: with a reason, or as often lost as it may be."""
    return attempts[-1].state.name == "FAIL" and not continued(attempts, retries)


def failures_in_a_row(trials: Sequence[Any], retries: int, forgiven: Collection[int]) -> list[list[Any]]:
    """Of the trials that have ended, latest first, those that failed, up to the first that did not.

    forgiven: numbers of last attempts that are left out: they ended before the study was last started.
    """
    groups = (attempts for attempts in lineages(trials).values() if attempts[-1].state.is_finished())
    ended = [a for a in groups if not continued(a, retries) and a[-1].number not in forgiven]
    ended.sort(key=lambda a: (a[-1].datetime_complete, a[-1].number), reverse=True)
    return list(itertools.takewhile(lambda a: failed(a, retries), ended))


def trial_row(attempts: Sequence[Any], retries: int, gone: bool = False) -> Trial:
    """gone: the last attempt is still RUNNING in the storage, but its process is not."""
    last = attempts[-1]
    complete = last.state.name == "COMPLETE"
    return Trial(
        number=origin(last),
        state=_state(attempts, retries, gone),
        picks={**last.system_attrs.get("fixed_params", {}), **last.params},
        values=list(last.values) if complete else None,
        reason=last.user_attrs.get("reason") or last.user_attrs.get("pruned") or _loss(attempts, gone),
        attempts=len(attempts),
        seconds=sum(t.duration.total_seconds() for t in attempts if t.duration and not died(t)),
        feasible=complete and all(value <= 0 for value in last.constraints.values()),
        runs=last.user_attrs.get("runs", []),
        constraints=dict(last.constraints) if complete else {},
        repeats=last.user_attrs.get("repeats"),
    )


def _state(attempts: Sequence[Any], retries: int, gone: bool) -> str:
    last = attempts[-1]
    if last.state.name != "FAIL" and not gone:
        return str(last.state.name.lower())
    lost = deaths(attempts) + (gone and not interrupted(last))
    again = (gone or died(last)) and lost <= retries
    return "failed" if not again else "stopped" if interrupted(last) else "lost"


def _loss(attempts: Sequence[Any], gone: bool) -> str:
    last = attempts[-1]
    if not (gone or died(last)):
        return ""
    if interrupted(last):
        return "it was stopped"
    signal = f" ({last.user_attrs['ended_by']})" if "ended_by" in last.user_attrs else ""
    times = f", {len(attempts)} times" if len(attempts) > 1 else ""
    return f"its process died{signal}{times}"

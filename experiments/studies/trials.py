"""Read Optuna's trials as attempts: several of them can be one trial, continued after its process died.

Optuna has no state for "its process died": the trial is FAIL, like one that raised an error. One that raised has a
`reason` in its user attributes. One that died has none, and its next attempt has its number in the history.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.studies.space import Scalar

TAKEN = "taken_over"  # the system attribute of a trial from a file
RUNS = "runs"  # the system attribute with a trial's runs: the dashboard would show all of it as a user attribute
SECONDS = "seconds"  # the user attribute with the time of an attempt by a clock that nobody sets


@dataclass
class Trial:
    """A trial with all its attempts. number: of the first one.

    state: waiting, running, complete, pruned, failed, lost (its process is gone) or stopped (by hand, or by a fault of
    the machine). The next start continues trials that are lost or stopped. seconds: of the attempts that ended by
    themselves. runs: one per seed, see `experiments.studies.trial.run_record`. constraints: satisfied at 0 or below.
    repeats: number of the trial with the same picks, whose runs and values these are.
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
    """Return the number of the first attempt. Each later attempt has the numbers of those before it."""
    history = trial.system_attrs.get("retry_history") or [trial.number]
    return int(history[0])


def picks_of(trial: Any) -> dict[str, Scalar]:
    """Return what an attempt tries: drawn by the sampler, or queued as a cell of a grid."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def lineages(trials: Sequence[Any]) -> dict[int, list[Any]]:
    """Group attempts by trial: number of the first attempt -> its attempts in order."""
    found: dict[int, list[Any]] = {}
    for trial in trials:
        found.setdefault(origin(trial), []).append(trial)
    return found


def taken_over(trial: Any) -> bool:
    """Whether the trial was taken from a file (`exchange`): nobody here knows when it ran, only how long."""
    return bool(trial.system_attrs.get(TAKEN))


def died(trial: Any) -> bool:
    """Whether the attempt ended because its process was killed or stopped."""
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def foreign(trial: Any) -> bool:
    """Whether another program added the attempt as complete: it has no note of its runs, not even an empty one."""
    return bool(trial.state.name == "COMPLETE") and not any(RUNS in a for a in (trial.system_attrs, trial.user_attrs))


def interrupted(trial: Any) -> bool:
    """Whether the attempt was stopped with Ctrl-C or SIGTERM, or by a fault of the machine, such as a full disk."""
    return bool(trial.user_attrs.get("interrupted") == trial.number)


def seconds(trial: Any) -> float:
    """Return how long an attempt took; 0 if it has not ended by itself. Clocks that are set do not change it."""
    if died(trial) or not trial.duration:
        return 0.0
    return float(trial.user_attrs.get(SECONDS, trial.duration.total_seconds()))  # not there in earlier versions


def advanced(trial: Any) -> bool:
    """Whether the trial got further in this attempt: to a newer checkpoint, or to the result of a seed."""
    return bool(trial.user_attrs.get("reached", 0) > trial.user_attrs.get("began_at", 0))


def deaths(attempts: Sequence[Any]) -> int:
    """Count the attempts whose process died and that got no further. One without an owner had not begun."""
    return sum(died(t) and "owner" in t.user_attrs and not interrupted(t) and not advanced(t) for t in attempts)


def continued(attempts: Sequence[Any], retries: int) -> bool:
    """Whether the last attempt died, and the trial will be tried again."""
    return died(attempts[-1]) and deaths(attempts) <= retries


def failed(attempts: Sequence[Any], retries: int) -> bool:
    """Whether the trial ended without values: with a reason, or because it died too often."""
    return attempts[-1].state.name == "FAIL" and not continued(attempts, retries)


def failures_in_a_row(trials: Sequence[Any], retries: int, forgiven: Collection[int]) -> list[list[Any]]:
    """Return the trials that failed since the last one that did not, the latest first.

    forgiven: numbers of last attempts that do not count: they ended before the study was last started.
    """
    groups = (attempts for attempts in lineages(trials).values() if attempts[-1].state.is_finished())
    ended = [a for a in groups if not continued(a, retries) and a[-1].number not in forgiven]
    ended.sort(key=lambda a: a[-1].number, reverse=True)  # not by time: clocks are set, and those of machines differ
    return list(itertools.takewhile(lambda a: failed(a, retries), ended))


def stopped_by(trials: Sequence[Any], failures: int, retries: int, forgiven: Collection[int]) -> str:
    """Return the reason to stop if so many trials in a row failed, else an empty text."""
    row = failures_in_a_row(trials, retries, forgiven)
    if len(row) < failures:
        return ""
    return f"stopped: {len(row)} trials in a row failed, the last with: {trial_row(row[0], retries).reason}"


def used_up(trials: Sequence[Any], limit: int | None, retries: int) -> str:
    """Return `finished` if as many trials as the limit have ended, `claimed` if some still run, else an empty text."""
    groups = lineages(trials).values()
    waiting = [attempts for attempts in groups if attempts[-1].state.name == "WAITING"]
    begun = [attempts for attempts in groups if attempts not in waiting or len(attempts) > 1]
    if limit is None or len(begun) < limit or any(attempts in waiting for attempts in begun):
        return ""
    ended = all(a[-1].state.is_finished() and not continued(a, retries) for a in begun)
    return "finished" if ended else "claimed"


def trial_row(attempts: Sequence[Any], retries: int, gone: bool = False) -> Trial:
    """Make a Trial of its attempts. gone: the last one is RUNNING in the storage, but its process is gone."""
    last = attempts[-1]
    complete = last.state.name == "COMPLETE"
    return Trial(
        number=origin(last),
        state=_state(attempts, retries, gone),
        picks=picks_of(last),
        values=list(last.values) if complete else None,
        reason=last.user_attrs.get("reason") or last.user_attrs.get("pruned") or _loss(attempts, retries, gone),
        attempts=len(attempts),
        seconds=sum(map(seconds, attempts)),
        feasible=complete and all(value <= 0 for value in last.constraints.values()),
        runs=last.system_attrs.get(RUNS) or last.user_attrs.get(RUNS, []),  # there in studies of earlier versions
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


def _loss(attempts: Sequence[Any], retries: int, gone: bool) -> str:
    last = attempts[-1]
    if not (gone or died(last)):
        return ""
    if interrupted(last):
        return "it was stopped"
    signal = f" ({last.user_attrs['ended_by']})" if "ended_by" in last.user_attrs else ""
    times = f", {len(attempts)} times" if len(attempts) > 1 else ""
    limit = f" (retries: {retries}; a larger number continues it)" if deaths(attempts) > retries else ""
    return f"its process died{signal}{times}{limit}"

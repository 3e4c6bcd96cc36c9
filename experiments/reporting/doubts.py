"""Say what would change a claim: which end of an interval decides it, and how many more questions would decide more.

An interval is about as wide as 1 / sqrt(n) for n questions. So if a difference is as large as measured, and its
interval reaches h too far for it, h^2 / difference^2 times as many questions would show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.records import ArmResult, Estimate
from experiments.reporting.summary import Claim
from experiments.reporting.text import format_number, label
from experiments.scorecard.figures import FIGURES

MANY = 100.0  # times the questions, from which on nobody asks so many


def doubt(claim: Claim, questions: Mapping[str, int] | None = None, seeds: int = 1) -> str:
    """Say what would change a claim; empty for one that rests on no interval.

    questions: how many a figure was measured on, by figure. seeds: of each arm; with several, intervals resample seeds
    too, and more of both are needed.
    """
    asked = (questions or {}).get(claim.figure)
    if claim.best is not None:
        return _comparison(claim, claim.best, asked, seeds)
    return _bound(claim, asked, seeds) if claim.arms else ""


def _comparison(claim: Claim, best: ArmResult, asked: int | None, seeds: int) -> str:
    """Name the arm below the best that would catch up first, or of those level with it the first to fall behind."""
    said = []
    if behind := _apart(claim, best, claim.behind):
        distance, half, arm = min(behind, key=lambda found: found[0] / found[1])
        start = f"the lead over {label(arm)}, the nearest below, is {_number(claim, distance)}"
        said.append(f"{start}; {_margin(claim, distance, half)}")
    if tied := _apart(claim, best, claim.tied):
        distance, half, arm = max(tied, key=lambda found: found[0] / found[1])
        more = _more(distance, half, asked, seeds)
        start = f"{label(arm)} would be the first to fall behind"
        said.append(f"{start}: the difference is {_number(claim, distance)}, and {more}")
    return "; ".join(said)


def _apart(claim: Claim, best: ArmResult, arms: Sequence[ArmResult]) -> list[tuple[float, float, ArmResult]]:
    """Return the distance of each arm from the best, its half width (of the independent intervals), and the arm."""
    first, found = best.scorecard[claim.figure], []
    for arm in arms:
        half = math.hypot(_half(first), _half(arm.scorecard[claim.figure]))
        if 0 < half < math.inf:
            found.append((abs(first.value - arm.scorecard[claim.figure].value), half, arm))
    return found


def _margin(claim: Claim, distance: float, half: float) -> str:
    if distance <= half:
        return "the answers to the same questions show it, the two intervals alone would not"
    return f"the intervals allow for an error of {_number(claim, half)}"


def _bound(claim: Claim, asked: int | None, seeds: int) -> str:
    """Name the arm that is nearest to crossing the bound."""
    found = [(arm, arm.scorecard[claim.figure]) for arm in claim.arms]
    known = [(arm, one) for arm, one in found if one.low is not None and one.high is not None]
    if not known:
        return ""
    below, bound = claim.figure == "retention", f"{claim.bound:g}"
    if claim.decided:
        arm, one = min(known, key=lambda pair: abs(_end(pair[1], below) - claim.bound))
        end = _end(one, below)
        gap = _number(claim, abs(end - claim.bound))
        return f"{label(arm)} is nearest to {bound}: its interval ends at {_number(claim, end)}, {gap} away"
    sides = [(claim.bound - one.value if below else one.value - claim.bound, arm, one) for arm, one in known]
    distance, arm, one = max(sides, key=lambda side: side[0] / max(_half(side[2]), 1e-12))
    if distance <= 0:
        word = "forgetting" if below else "a gain"
        return (
            f"no arm measures {word}; {label(arm)} could still be at {_number(claim, one.low if below else one.high)}"
        )
    return f"{label(arm)} is the first candidate: {_more(distance, abs(_end(one, below) - one.value), asked, seeds)}"


def _more(distance: float, half: float, asked: int | None, seeds: int) -> str:
    """Say how many more questions would show a difference of this size."""
    if distance <= half / math.sqrt(MANY):
        return f"more than {MANY:g} times as many questions would be needed: count them as equal"
    times = (half / distance) ** 2
    if times <= 1:
        return "the intervals alone would show it, but not the test over all pairs of arms: compare fewer arms"
    count = f" ({_up(asked * times)} in place of {asked})" if asked else ""
    both = f" and seeds ({_up(seeds * times)} in place of {seeds})" if seeds > 1 else ""
    return f"if that is real, about {times:.1f} times as many questions{count}{both} would show it"


def _up(number: float) -> int:
    return math.ceil(number - 1e-6)  # 8.000000001 is 8


def _half(one: Estimate) -> float:
    return math.inf if one.low is None or one.high is None else (one.high - one.low) / 2


def _end(one: Estimate, upper: bool) -> float:
    end = one.high if upper else one.low
    assert end is not None
    return end


def _number(claim: Claim, value: float | None) -> str:
    return "" if value is None else format_number(value, places=FIGURES[claim.figure].places)

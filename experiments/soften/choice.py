"""Choose a point of the path from base to model, by figures of the items that choose."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.measure.gate import Condition
from experiments.posthoc.choice import RULE, Point, mildest
from experiments.records import ArmResult
from experiments.reporting.text import figure_text
from experiments.scorecard.figures import GAINS


def meets(point: Point, conditions: Sequence[Condition]) -> bool:
    """Return whether a point's bounds fulfil all conditions."""
    result = ArmResult(f"alpha {point.alpha:g}", "", 0.0, "finished", scorecard=dict(point.card))
    return all(condition.judge(result, {})[0] for condition in conditions)


def choose(points: Sequence[Point], conditions: Sequence[Condition] = ()) -> tuple[Point | None, str]:
    """Return the chosen point and the rule in words; no point if none meets the conditions.

    Without conditions: of the points whose gain is within one standard error of the best gain, the one that lost the
    smallest share of the base's answers (of equal ones the lowest alpha). With conditions, whose bounds must hold: of
    the points that meet them the one of highest gain, or without a new task the highest alpha.
    """
    if conditions:
        wanted = " and ".join(condition.text for condition in conditions)
        meeting = [point for point in points if meets(point, conditions)]
        rule = f"the {'highest gain' if points[0].gain else 'highest alpha'} of the points that meet {wanted}"
        best = max(meeting, key=lambda point: (point.gain.value if point.gain else 0.0, point.alpha), default=None)
        return best, rule
    return mildest(points), RULE


def barrier(points: Sequence[Point]) -> str | None:
    """Say that the middle of the path is worse than both its ends, if the intervals of a point show it; else None.

    The ends are the base (gain 0, retention 1) and the model itself, the last point.
    """
    *middle, end = sorted(points, key=lambda point: point.alpha)
    for name, base in [*((name, 0.0) for name in GAINS if name in end.card), ("retention", 1.0)]:
        if name not in end.card:
            continue
        floor = min(base, end.card[name].value)
        worst = min(middle, key=lambda point: point.card[name].value, default=None)
        high = worst.card[name].high if worst else None
        if worst and high is not None and high < floor:
            found = figure_text(worst.card, name)
            return (
                f"The path has a barrier: at alpha {worst.alpha:g} the {name} is {found}, worse than at both ends. "
                "The weights of base and model are not connected: softening is no cure here"
            )
    return None

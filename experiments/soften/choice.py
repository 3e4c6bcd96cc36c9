"""Choose a point of the path from base to model, by figures of the items that choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.measure.gate import Condition
from experiments.records import ArmResult, Estimate
from experiments.reporting.text import figure_text
from experiments.scorecard.figures import GAINS

NORMAL = 1.96  # standard errors from the middle to the end of a 95 % interval


@dataclass(frozen=True)
class Point:
    """A point of the path. card: its figures on the items that choose. result: name and figures, for conditions."""

    alpha: float
    card: Mapping[str, Estimate]

    @property
    def gain(self) -> Estimate | None:
        return next((self.card[name] for name in GAINS if name in self.card), None)

    @property
    def lost(self) -> float:
        """Share of the base's kept answers that were lost."""
        return self.card["nfr"].value

    def meets(self, conditions: Sequence[Condition]) -> bool:
        result = ArmResult(f"alpha {self.alpha:g}", "", 0.0, "finished", scorecard=dict(self.card))
        return all(condition.judge(result, {})[0] for condition in conditions)


def choose(points: Sequence[Point], conditions: Sequence[Condition] = ()) -> tuple[Point | None, str]:
    """Return the chosen point and the rule in words; no point if none meets the conditions.

    Without conditions: of the points whose gain is within one standard error of the best gain, the one that lost the
    smallest share of the base's answers (of equal ones the lowest alpha). With conditions, whose bounds must hold: of
    the points that meet them the one of highest gain, or without a new task the highest alpha.
    """
    if conditions:
        wanted = " and ".join(condition.text for condition in conditions)
        meeting = [point for point in points if point.meets(conditions)]
        rule = f"the {'highest gain' if points[0].gain else 'highest alpha'} of the points that meet {wanted}"
        best = max(meeting, key=lambda point: (point.gain.value if point.gain else 0.0, point.alpha), default=None)
        return best, rule
    gains = {point.alpha: point.gain for point in points if point.gain}
    top = max(gains.values(), key=lambda gain: gain.value)
    least = top.value - standard_error(top)
    near = [point for point in points if gains[point.alpha].value >= least]
    rule = "the fewest lost answers of the points whose gain is within one standard error of the best"
    return min(near, key=lambda point: (point.lost, point.alpha)), rule


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


def standard_error(estimate: Estimate) -> float:
    """Return the half-width of the 95 % interval / 1.96; 0 without an interval."""
    if estimate.low is None or estimate.high is None:
        return 0.0
    return (estimate.high - estimate.low) / (2 * NORMAL)

"""Differences of two arms in the mean of a few texts or replies: random halves of them, which a long tail cannot fool.

The draws of two arms share what they count beyond the sample (`bootstrap.with_unseen_value`), so it cancels in their
difference; but differences have a long tail too. Draws alone called arms of the same KL different (p < .05) in 10 to 20
of 100 samples of 8 to 24 replies. Means of random halves of the differences (Hartigan 1969, "typical values") are as
often on one side of the truth as on the other, whatever the tail: their share at or beyond 0 is the p of the exact
test that turns the signs of the differences.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import numpy as np

from experiments.records import Estimate
from experiments.scorecard.bootstrap import Array, bootstrap_p, estimate
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.halves import of_half
from experiments.scorecard.sample import NotMeasured, Sample
from experiments.scorecard.seeds import Measured

Unit: TypeAlias = tuple[str, str, str]  # task, form, item of a text or reply
UnitValues: TypeAlias = Mapping[str, Mapping[Unit, tuple[float, float]]]  # by figure: value x weight, weight
FEW, HALVES, LEAST_DRAWS = 12, 4095, 100  # units of which all halves are taken; halves of more; for sums not needed


def unit_values(runs: Sequence[Measured], choosing: bool | None = None) -> UnitValues:
    """Return the texts and replies of which figures are means (`Figure.units`), each the mean over the seeds."""
    found: dict[str, dict[Unit, tuple[float, float]]] = {}
    for base, after in runs:
        sample = Sample(of_half(base, choosing), of_half(after, choosing), LEAST_DRAWS)
        for figure in FIGURES.values():
            if figure.units is None:
                continue
            with suppress(NotMeasured):
                own = found.setdefault(figure.name, defaultdict(lambda: (0.0, 0.0)))
                for record, value, weight in figure.units(sample):
                    top, bottom = own[record.key[1:]]
                    own[record.key[1:]] = (top + value * weight / len(runs), bottom + weight / len(runs))
    return {name: dict(own) for name, own in found.items() if own}


def half_means(first: Mapping[Unit, tuple[float, float]], second: Mapping[Unit, tuple[float, float]]) -> Array | None:
    """Return the weighted mean of the differences of units, and of random halves of them: (1 + halves,).

    None for fewer than two units, or if the two arms do not have the same ones, with the same weights.
    """
    if len(first) < 2 or first.keys() != second.keys():
        return None
    rows = [(*first[unit], *second[unit]) for unit in sorted(first)]
    one, weight, other, its = np.array(rows, dtype=np.float64).T
    if not np.allclose(weight, its) or not (weight > 0).all():
        return None
    chosen = _halves(len(rows))
    means = chosen @ (one - other) / (chosen @ weight)
    return np.concatenate([[(one - other).sum() / weight.sum()], means])


def _halves(count: int) -> Array:
    """Choose each unit or not: all ways to do so for a few units, else random ones. (halves, count); none is empty."""
    if count <= FEW:
        return np.array(list(itertools.product((0.0, 1.0), repeat=count)))[1:]
    chosen = np.random.default_rng([7, count]).integers(0, 2, (HALVES, count)).astype(np.float64)
    return np.asarray(chosen[chosen.any(axis=1)])


def larger_p(p: float, means: Array | None) -> float:
    """Return the larger of the p of a difference and that of its `half_means`; a p that is NaN stays so."""
    return p if means is None or math.isnan(p) else max(p, bootstrap_p(means))


def widened(value: Estimate, means: Array | None) -> Estimate:
    """Extend the interval of a difference to that of the means of random halves (`half_means`)."""
    if means is None or value.low is None or value.high is None:
        return value
    halves = estimate(means)
    if halves.low is None or halves.high is None:
        return value
    return Estimate(value.value, min(value.low, halves.low), max(value.high, halves.high))

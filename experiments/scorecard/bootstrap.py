"""The paired Bayesian bootstrap: percentile intervals from reweighted questions (Rubin 1981).

The reweighted unit is the question, not the record: the forms in which one question was asked (chat, plain) have one
weight, within strata of the same task and forms. Weights are random and positive, where the classical bootstrap counts
how often a question is drawn: a change that one question shows is then never absent, nor a base without a right answer.
They depend on the seed, the stratum and its size alone, so base, arms and steps that share a seed see the same weights
and their figures may be subtracted.

No weights can bring back what the sample does not hold. Rare events are added: flips (`flips.with_unseen`), and replies
with a large KL (`with_unseen_value`). The constants are chosen by simulation
(tests/experiments/scorecard/test_coverage.py).

Arrays of draws have 1 + draws rows; row 0 is the sample as observed.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from experiments.common.section import MAX_DRAWS
from experiments.records import Estimate, Record

Array = NDArray[np.float64]
Stratum = tuple[str, tuple[str, ...]]  # task, forms
CELLS = 2_000_000  # questions x draws held at once
UNSEEN_WEIGHT, UNSEEN_SHAPE, UNSEEN_SPREADS = 0.3, 0.15, 1.4  # of a value that was not seen, see `with_unseen_value`
LUCK = 1 + 1 / (math.sqrt(2) - 1)  # of the highest of several, see `of_highest`
FEWEST_VALUES = 4  # with a long tail: fewer do not show how long it is, and have no interval


def check_draws(draws: int) -> None:
    if not 100 <= draws <= MAX_DRAWS:
        raise ValueError(f"draws must be 100 or more for a 95 % interval, and at most {MAX_DRAWS}, but got {draws}")


def resample(questions: Mapping[tuple[Stratum, str], Array], draws: int, seed: int) -> dict[Stratum, Array]:
    """Sum columns over reweighted questions, by stratum: (1 + draws, columns). Row 0 is the sample as observed.

    questions: (stratum, item) -> its columns. In each row the weights of a stratum of m questions add up to m.
    """
    strata: dict[Stratum, list[Array]] = defaultdict(list)
    for stratum, item in sorted(questions):
        strata[stratum].append(questions[stratum, item])
    return {stratum: _resample(np.stack(rows), stratum, draws, seed) for stratum, rows in strata.items()}


def _resample(values: Array, stratum: Stratum, draws: int, seed: int) -> Array:
    """Multiply weights (draws, m) by values (m, columns), in chunks of draws: (1 + draws, columns)."""
    m = len(values)
    rng = np.random.default_rng([seed, zlib.crc32(repr(stratum).encode())])
    sums = [values.sum(axis=0, keepdims=True)]
    step = max(1, CELLS // m)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        sums.append(question_weights(rng, rows, m) @ values)
    return np.concatenate(sums)


def question_weights(rng: np.random.Generator, draws: int, m: int) -> Array:
    """Draw weights of m questions that add up to m: (draws, m).

    Exponential numbers times 1 + d or 1 - d, d = 1 / sqrt(m - 3), at most .82. The variance of a weighted mean is then
    s^2 / m within 5 % from 4 questions on, s^2 the unbiased variance of the questions; exponential numbers alone give
    (m - 1) / (m + 1) of it.
    """
    spread = min(0.82, 1 / math.sqrt(max(m - 3, 1)))
    signs = rng.integers(0, 2, (draws, m), dtype=np.int8)
    weights = rng.standard_exponential((draws, m)) * np.array([1 - spread, 1 + spread])[signs]
    return np.asarray(weights * (m / weights.sum(axis=1, keepdims=True)))


def weighted(
    rows: Iterable[tuple[Record, float, float]],
    draws: int,
    seed: int,
    positive: bool = False,
    key: Sequence[int] = (),
) -> Array:
    """Weighted mean sum(weight * value) / sum(weight) over records, from (record, value, weight): (1 + draws,).

    Texts and replies are few, so the deviation of each draw is widened (`student_factor`). positive: values of at
    least 0 with a long tail, such as KL (`with_unseen_value`). Other values that are all above 0, or all below, may be
    such too: of the texts that a model forgets a few lose far more than the rest. Each draw then is the one of both
    ways that is further away. key: further seed of what the sample did not show, for one arm alone.
    """
    rows = list(rows)
    columns: dict[tuple[Stratum, str], Array] = {}
    for record, value, weight in rows:
        columns[(record.task, (record.form,)), record.item] = np.array([weight * value, weight])
    sums = resample(columns, draws, seed)
    top, bottom = np.sum(list(sums.values()), axis=0).T
    seen, weights = np.array([(value, weight) for _, value, weight in rows]).T
    if positive:
        return with_unseen_value(top, bottom, seen, student_factor(len(columns), len(sums)), (seed, *key))
    factor = student_factor(len(columns), len(sums), lost_degrees(weights))
    values = ratio(top, bottom)
    values[1:] = values[0] + factor * (values[1:] - values[0])
    if len(seen) < FEWEST_VALUES or not ((seen > 0).all() or (seen < 0).all()):
        return values
    sign = math.copysign(1.0, seen[0])
    tailed = sign * with_unseen_value(sign * top, bottom, abs(seen), factor, (seed, *key))
    return further_away(values, tailed)


def further_away(first: Array, second: Array) -> Array:
    """Take of two ways to draw a figure, (1 + draws,), each draw that is further from the observed value."""
    return np.where(abs(second - second[0]) > abs(first - first[0]), second, first)


def with_unseen_value(top: Array, bottom: Array, seen: Array, factor: float, seed: Sequence[int]) -> Array:
    """Divide top by bottom, both (1 + draws,), of values with a long tail: each draw counts a value that was not seen.

    Its weight is a gamma number of mean `UNSEEN_WEIGHT` mean weights and shape `UNSEEN_SHAPE`: almost 0 in most draws.
    Its size is max(seen) * exp(UNSEEN_SPREADS * s), s: spread of log(seen), drawn as the sample leaves it open (s^2 *
    df / chi squared, df = n - 1, at least 5). So values that are alike expect no other, and a few unlike ones a much
    larger one. Then higher draws are widened by `factor`, and lower ones on the log scale. Fewer than `FEWEST_VALUES`
    have no interval.
    """
    n = len(seen)
    values = ratio(top, bottom)
    if not values[0] > 0:
        return values
    if n < FEWEST_VALUES:
        return np.concatenate([values[:1], np.full(len(values) - 1, np.nan)])
    rng, draws, df = np.random.default_rng([*seed, n]), len(values) - 1, max(n - 1, 5)
    weight = rng.standard_gamma(UNSEEN_SHAPE, draws) * (UNSEEN_WEIGHT / UNSEEN_SHAPE) * bottom[0] / n
    size = seen.max() * np.exp(UNSEEN_SPREADS * log_spread(seen) * np.sqrt(df / rng.chisquare(df, draws)))
    relative = ratio(top[1:] + weight * size, bottom[1:] + weight) / values[0]
    values[1:] = values[0] * np.where(relative > 1, 1 + factor * (relative - 1), relative**factor)
    return values


def log_spread(values: Array) -> float:
    """Standard deviation of log(values). Values below a tenth of the median of those above 0 count as that tenth.

    Almost nothing and nothing are the same in a mean, but not in its logarithm.
    """
    least = np.median(values[values > 0]) / 10
    return float(np.log(np.maximum(values, least)).std(ddof=1))


def student_factor(units: int, strata: int = 1, lost: float = 0) -> float:
    """Widening factor from the normal to Student's t interval: t / 1.96, t: the 97.5 % quantile; 1.21 for 8 units.

    Degrees of freedom: units - strata - lost (`lost_degrees`), at least 1. NaN for a single unit: it has no interval.
    """
    if units <= strata:
        return float("nan")
    return float(stdtrit(max(units - strata - lost, 1), 0.975) / ndtri(0.975))  # quantiles; `stats.t.ppf` is slow


def lost_degrees(weights: Array) -> float:
    """Count the degrees of freedom that the variance of a weighted mean has less than n - 1; 0 for equal weights.

    Few long texts among short ones decide the mean, and its variance too. With shares h of the weight, a = h^2 and
    c = sum(a) / 2 - h it is tr(G) = sum(a (1 + 2c)) times s^2, and has tr(G)^2 / tr(G^2) degrees (Satterthwaite 1946;
    Bell & McCaffrey 2002), tr(G^2) = sum(a^2 (1 + 4c)) + 2 sum(a c^2) sum(a) + 2 sum(a c)^2.
    """
    if len(weights) < 2 or not weights.sum() > 0:
        return 0.0
    h = weights / weights.sum()
    a = h**2
    c = a.sum() / 2 - h
    trace, of_square = (a * (1 + 2 * c)).sum(), (a**2 * (1 + 4 * c)).sum()
    of_square += 2 * (a * c**2).sum() * a.sum() + 2 * (a * c).sum() ** 2
    return max(0.0, float(len(h) - 1 - trace**2 / of_square))


def ratio(top: Array, bottom: Array) -> Array:
    """Divide top by bottom; NaN if bottom is not positive: a ratio to nothing says nothing."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def harmonic(first: Array, second: Array) -> Array:
    """Harmonic mean 2 x y / (x + y); 0 if one of them is not positive: no gain makes up for a loss, nor the reverse.

    NaN stays NaN.
    """
    first, second = np.maximum(first, 0), np.maximum(second, 0)
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(first), where=(total > 0) | np.isnan(total))


def of_highest(values: Array) -> Array:
    """Lower the draws below the median of a figure that takes the highest of several measurements, (1 + draws,).

    The highest of several that are equal in truth is too high, by c standard errors, since it is picked for its luck.
    Draws show sqrt(2) - 1 of that: they are as much above the observed value. So LUCK = 1 + 1 / (sqrt(2) - 1) times
    what they show is subtracted. Where one measurement is clearly the highest they show nothing, and nothing is.
    """
    drawn = values[1:]
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return values
    luck = max(0.0, float(known.mean() - values[0]))
    return np.concatenate([values[:1], np.where(drawn < np.median(known), drawn - LUCK * luck, drawn)])


def estimate(values: Array) -> Estimate:
    """Return row 0 with the 2.5 and 97.5 percentiles of the rest; no interval if over 1 % of the draws are NaN."""
    drawn = _finite(values)
    if drawn is None:
        return Estimate(float(values[0]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def bootstrap_p(difference: Array) -> float:
    """Two-sided p that a difference is 0, by inversion of the percentile interval.

    Twice the smaller share of draws at or beyond 0 (Efron & Tibshirani 1993, section 15.4), with one draw added so that
    it is never 0. NaN if the difference has no interval; 1 if it is 0 in every draw.
    """
    drawn = _finite(difference)
    if drawn is None:
        return float("nan")
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def _finite(values: Array) -> Array | None:
    """Return the draws with a value; None if row 0 has none, or over 1 % of the draws."""
    drawn = values[1:][np.isfinite(values[1:])]
    return drawn if np.isfinite(values[0]) and len(drawn) >= 0.99 * len(values[1:]) else None

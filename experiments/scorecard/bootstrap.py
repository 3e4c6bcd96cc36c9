"""The paired bootstrap: percentile intervals from resampled questions.

The resampled unit is the question, not the record: the forms in which one question was asked (chat, plain) are drawn
together, within strata of the same task and forms. Indices depend on the seed, the stratum and its size alone, so
base, arms and steps that share a seed see the same resampled questions and their figures may be subtracted.

Arrays of draws have 1 + draws rows; row 0 is the sample as observed.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student

from experiments.records import Estimate, Record

Array = NDArray[np.float64]
Stratum = tuple[str, tuple[str, ...]]  # task, forms
CELLS = 2_000_000  # questions x draws held at once


def check_draws(draws: int) -> None:
    if draws < 100:
        raise ValueError(f"draws must be at least 100 for a 95 % interval, but got {draws}")


def resample(questions: Mapping[tuple[Stratum, str], Array], draws: int, seed: int) -> dict[Stratum, Array]:
    """Sum columns over resampled questions, by stratum: (1 + draws, columns). Row 0 is the sample as observed.

    questions: (stratum, item) -> its columns. In each row a stratum of m questions gives m, drawn with replacement.
    """
    strata: dict[Stratum, list[Array]] = defaultdict(list)
    for stratum, item in sorted(questions):
        strata[stratum].append(questions[stratum, item])
    return {stratum: _resample(np.stack(rows), stratum, draws, seed) for stratum, rows in strata.items()}


def _resample(values: Array, stratum: Stratum, draws: int, seed: int) -> Array:
    """Multiply times drawn (draws, m) by values (m, columns), in chunks of draws: (1 + draws, columns)."""
    m = len(values)
    rng = np.random.default_rng([seed, zlib.crc32(repr(stratum).encode())])
    sums = [values.sum(axis=0, keepdims=True)]
    step = max(1, CELLS // m)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        cells = rng.integers(m, size=(rows, m)) + m * np.arange(rows)[:, None]
        times = np.bincount(cells.ravel(), minlength=rows * m).reshape(rows, m)
        sums.append(times.astype(np.float64) @ values)
    return np.concatenate(sums)


def weighted(rows: Iterable[tuple[Record, float, float]], draws: int, seed: int) -> Array:
    """Weighted mean sum(weight * value) / sum(weight) over records, from (record, value, weight): (1 + draws,).

    Texts and replies are few, so the deviation of each draw is widened (`small_sample_factor`).
    """
    columns: dict[tuple[Stratum, str], Array] = {}
    for record, value, weight in rows:
        columns[(record.task, (record.form,)), record.item] = np.array([weight * value, weight])
    sums = resample(columns, draws, seed)
    totals = np.sum(list(sums.values()), axis=0)
    values = ratio(totals[:, 0], totals[:, 1])
    factor = small_sample_factor(len(columns), len(sums))
    return np.concatenate([values[:1], values[0] + factor * (values[1:] - values[0])])


def small_sample_factor(units: int, strata: int = 1) -> float:
    """Widening factor that makes a percentile interval of the mean of n units as wide as Student's t interval.

    t / 1.96 * sqrt(n / (n - 1)), t: the 97.5 % quantile with n - 1 degrees of freedom; 1.29 for 8 units, 1.03 for 100.
    n: units, less one for each stratum but the first. NaN for a single unit, which has no interval.
    """
    n = units - strata + 1
    if n < 2:
        return float("nan")
    return float(student.ppf(0.975, n - 1) / normal.ppf(0.975) * math.sqrt(n / (n - 1)))


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

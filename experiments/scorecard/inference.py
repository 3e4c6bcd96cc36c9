"""Closed-form statistics of rates and flips, tests of several arms, and non-inferiority."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from experiments.records import Estimate


def wilson(rate: float, n: int) -> Estimate:
    """Give a rate Wilson's 95 % interval for n independent trials."""
    low, high = proportion_confint(rate * n, n, alpha=0.05, method="wilson")
    return Estimate(rate, min(rate, max(0.0, float(low))), max(rate, min(1.0, float(high))))


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided exact binomial p of `lost` changes for the worse against `won` for the better; 1 if none changed."""
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def paired_error(nfr: float, pfr: float, n: int) -> float:
    """Standard error of a difference of two accuracies on the same n questions: sqrt((NFR + PFR - (PFR - NFR)^2) / n).

    The variance of a variable that is -1 with probability NFR, 1 with PFR and 0 else. It checks the bootstrap.
    """
    return math.sqrt((nfr + pfr - (pfr - nfr) ** 2) / n)


def flip_bound(nfr: float, pfr: float, n: int) -> float:
    """Upper end of a 95 % interval of NFR - PFR for n questions, which does not collapse if few or none flipped.

    NFR - PFR + sqrt((u - NFR)^2 + (PFR - l)^2), u: upper Wilson bound of NFR, l: lower one of PFR: the method of
    variance estimates recovery (Zou & Donner 2008, doi:10.1002/sim.3095), the two rates taken as uncorrelated.
    """
    high, low = wilson(nfr, n).high, wilson(pfr, n).low
    assert high is not None
    assert low is not None
    return nfr - pfr + math.hypot(high - nfr, pfr - low)


def forgetting_bound(forgetting: Estimate, nfr: float, pfr: float, n: int) -> float:
    """Upper 95 % bound of forgetting: the higher of the bootstrap's and `flip_bound`.

    With no flip at all the bootstrap cannot vary and its bound is 0 for any n; that would pass any margin.
    """
    closed = flip_bound(nfr, pfr, n)
    return closed if forgetting.high is None else max(forgetting.high, closed)


def non_inferior(bound: float, margin: float) -> bool:
    """Whether there is no forgetting within a margin: its upper 95 % bound is below the margin. NaN does not pass.

    Raises ValueError for a margin that is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must be an accuracy difference between 0 and 1, for example 0.01, but got {margin}")
    return bound < margin


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p of a family of m tests: the i-th smallest is max over j <= i of (m - j + 1) p_(j), at
    most 1 (Holm 1979). NaN stays NaN and is not counted.

    By hand, since statsmodels' multipletests runs a whole garbage collection at each call, which takes longer than the
    comparison that it serves; the tests hold the two against each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return [float(value) for value in adjusted]

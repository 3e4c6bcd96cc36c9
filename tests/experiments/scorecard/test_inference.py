"""Closed-form statistics against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

from experiments.records import Estimate
from experiments.scorecard import (
    forgetting_bound,
    holm,
    mcnemar_p,
    non_inferior,
    paired_error,
    wilson,
)
from experiments.scorecard.bootstrap import bootstrap_p
from experiments.scorecard.inference import flip_bound


def test_paired_error_is_the_spread_of_a_simulated_difference() -> None:
    rng, nfr, pfr, n = np.random.default_rng(0), 0.15, 0.05, 200
    counts = rng.multinomial(n, [nfr, pfr, 1 - nfr - pfr], size=20_000)
    assert paired_error(nfr, pfr, n) == pytest.approx(((counts[:, 0] - counts[:, 1]) / n).std(), rel=0.02)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01; 2 x .03; max(.06, 1 x .04)
    adjusted = holm([0.02, float("nan"), 0.01])
    assert adjusted[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(0).random(9) ** 3
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(raw <= a <= min(1, len(p) * raw) + 1e-12 for raw, a in zip(p, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))


@given(st.integers(20, 2000), st.floats(0, 0.5), st.floats(0, 0.5))
def test_flip_bound_lies_above_the_difference_and_falls_with_n(n: int, nfr: float, pfr: float) -> None:
    assert flip_bound(nfr, pfr, n) > nfr - pfr
    assert flip_bound(nfr, pfr, 4 * n) < flip_bound(nfr, pfr, n)


def test_no_flip_at_all_is_no_proof_of_no_forgetting() -> None:
    still = Estimate(0.0, 0.0, 0.0)
    assert forgetting_bound(still, 0.0, 0.0, 20) == pytest.approx(wilson(0.0, 20).high)
    assert not non_inferior(forgetting_bound(still, 0.0, 0.0, 20), 0.01)
    assert non_inferior(forgetting_bound(still, 0.0, 0.0, 1000), 0.01)


def test_the_bootstrap_bound_is_used_where_it_is_higher() -> None:
    assert forgetting_bound(Estimate(0.1, 0.0, 0.5), 0.15, 0.05, 400) == 0.5
    assert forgetting_bound(Estimate(float("nan")), 0.15, 0.05, 400) == flip_bound(0.15, 0.05, 400)


def test_an_undefined_bound_does_not_pass_and_a_margin_is_a_share() -> None:
    assert not non_inferior(float("nan"), 0.01)
    for margin in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"margin must be .* but got {margin}"):
            non_inferior(0.0, margin)


def test_bootstrap_p_counts_the_draws_beyond_zero() -> None:
    draws = np.concatenate([[0.2], np.linspace(-0.05, 0.95, 999)])  # row 0 is the sample
    below = int((draws[1:] <= 0).sum())
    assert bootstrap_p(draws) == pytest.approx(2 * (below + 1) / 1000)
    assert bootstrap_p(-draws) == bootstrap_p(draws)
    assert bootstrap_p(np.zeros(1000)) == 1
    assert math.isnan(bootstrap_p(np.full(1000, np.nan)))


def test_mcnemar_is_the_two_sided_binomial_tail() -> None:
    assert mcnemar_p(9, 2) == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar_p(2, 9) == mcnemar_p(9, 2)
    assert mcnemar_p(0, 0) == 1


def test_wilson_at_the_edge_is_not_of_width_zero() -> None:
    estimate = wilson(0.0, 20)
    assert estimate.low == wilson(0.0, 125).low == 0  # statsmodels has 2e-18 for 125, above the rate itself
    assert estimate.high == pytest.approx(1.96**2 / (20 + 1.96**2), rel=1e-3)

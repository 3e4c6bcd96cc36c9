"""The paired bootstrap: its spread, its strata, one seed for all arms, its speed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from experiments.scorecard import resample, scorecard
from experiments.scorecard.bootstrap import question_weights
from tests.helpers.scored_answers import answers, new, simulate


def test_bootstrap_spread_equals_the_analytic_standard_error() -> None:
    """With one form, sd(forgetting) = sqrt((NFR + PFR - (PFR - NFR)^2) / n)."""
    rows = {("t", str(i)): (1, 0) if i < 30 else (0, 1) if i < 40 else (1, 1) for i in range(200)}
    base, after = answers(rows)
    card = scorecard(base, after, draws=20_000, seed=3)
    nfr, pfr = 30 / 200, 10 / 200
    error = math.sqrt((nfr + pfr - (pfr - nfr) ** 2) / 200)
    forgetting = card["forgetting"]
    assert forgetting.low is not None
    assert forgetting.high is not None
    assert (forgetting.high - forgetting.low) / (2 * 1.96) == pytest.approx(error, rel=0.06)  # steps of 1/200
    columns = {(("t", ("chat",)), str(i)): np.array([b - a], float) for (_, i), (b, a) in rows.items()}
    assert (resample(columns, 20_000, 3)["t", ("chat",)][1:, 0] / 200).std() == pytest.approx(error, rel=0.02)


def test_one_seed_resamples_the_same_questions_for_every_arm() -> None:
    """Resampled base sums agree between two arms, so that differences between arms may be taken draw by draw."""
    rng = np.random.default_rng(4)
    columns = {(("t", ("chat",)), str(i)): np.array([float(i), rng.random()]) for i in range(40)}
    other = {key: np.array([row[0], rng.random()]) for key, row in reversed(columns.items())}
    first, second = (resample(c, 300, 7)["t", ("chat",)] for c in (columns, other))
    assert np.array_equal(first[:, 0], second[:, 0])
    assert not np.array_equal(first[:, 1], second[:, 1])
    assert not np.array_equal(first, resample(columns, 300, 8)["t", ("chat",)])


def test_strata_keep_their_size_and_do_not_disturb_each_other() -> None:
    small = {(("t", ("chat",)), str(i)): np.ones(1) for i in range(7)}
    more = {**small, **{(("u", ("chat",)), str(i)): np.ones(1) for i in range(20)}}
    spread = {key: np.array([float(key[1])]) for key in small}
    assert resample(more, 100, 0)["u", ("chat",)] == pytest.approx(20)
    alone = resample(spread, 100, 0)["t", ("chat",)]
    beside = resample({**spread, (("u", ("chat",)), "x"): np.ones(1)}, 100, 0)["t", ("chat",)]
    assert np.array_equal(alone, beside)
    assert alone.std() > 0


def test_ten_thousand_draws_of_2500_records_take_under_a_second() -> None:
    base, after = simulate(np.random.default_rng(0), 1200, 0.1, 0.1, tasks=8)
    base, after = [*base, *(new(str(i), 0) for i in range(128))], [*after, *(new(str(i), i % 2) for i in range(128))]
    start = time.process_time()
    scorecard(base, after, draws=10_000)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("m", [4, 5, 8, 20, 100])
def test_weights_are_positive_and_give_a_mean_its_variance(m: int) -> None:
    weights = question_weights(np.random.default_rng(0), 100_000, m)
    assert weights.min() > 0
    assert weights.sum(axis=1) == pytest.approx(m)
    values = np.random.default_rng(1).standard_normal(m)
    assert (weights @ values / m).var() == pytest.approx(values.var(ddof=1) / m, rel=0.06)

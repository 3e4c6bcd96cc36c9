"""The paired bootstrap: its spread, its strata, one seed for all arms, its speed."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from experiments.records import Record
from experiments.scorecard import resample, scorecard
from experiments.scorecard.bootstrap import lost_degrees, question_weights, student_factor, weighted
from experiments.scorecard.stream import stream_matrix
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


def test_degrees_that_unequal_weights_lose_are_satterthwaites() -> None:
    """By matrices: residuals v - mean are M v, and the variance of the mean is estimated by v' M' diag(h^2) M v."""
    weights = np.random.default_rng(0).integers(1, 50, 9).astype(float)
    h = weights / weights.sum()
    m = np.eye(9) - np.outer(np.ones(9), h)
    g = m.T @ np.diag(h**2) @ m
    assert lost_degrees(weights) == pytest.approx(8 - np.trace(g) ** 2 / np.trace(g @ g))
    assert lost_degrees(np.full(7, 3.0)) == pytest.approx(0)
    assert (lost_degrees(np.ones(1)), lost_degrees(np.zeros(3))) == (0, 0)
    assert student_factor(9, 1, 8) == student_factor(2)  # one degree at least


def test_texts_of_unequal_length_are_widened_for_it_in_figures_and_streams() -> None:
    """Few long texts decide the mean, and its variance too: intervals of 4 to 16 such texts covered 90 to 93 of 100."""
    values, tokens = np.random.default_rng(1).normal(0, 0.1, 8), np.array([10] * 7 + [40])
    rows = [
        (Record("text", "t", "nll", str(i), tokens=int(n)), float(v), n)
        for i, (v, n) in enumerate(zip(values, tokens, strict=True))
    ]
    columns = {(("t", ("nll",)), r.item): np.array([v * n, n]) for r, v, n in rows}
    top, bottom = resample(columns, 400, 0)["t", ("nll",)].T
    plain = top / bottom
    factor = student_factor(8, 1, lost_degrees(tokens.astype(float)))
    assert factor > 1.2 * student_factor(8)
    assert weighted(rows, 400, 0) == pytest.approx(plain[0] + factor * (plain - plain[0]))
    stages = [[replace(r, suite="new", value=s * v) for r, v, _ in rows] for s in (0, 1)]
    drawn = stream_matrix(stages, ["t"], 400, 0)[1, 0]
    top, bottom = resample({(("t", ()), i): c for (_, i), c in columns.items()}, 400, 0)["t", ()].T
    plain = top / bottom
    assert abs(drawn) == pytest.approx(abs(plain[0] + factor * (plain - plain[0])))

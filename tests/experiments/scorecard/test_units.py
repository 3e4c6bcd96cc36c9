"""Differences of means of a few texts or replies, against the exact test that turns the signs of the differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments.records import Estimate, Record
from experiments.scorecard import significant_pairs
from experiments.scorecard.bootstrap import bootstrap_p, estimate, weighted
from experiments.scorecard.differences import differences
from experiments.scorecard.units import half_means, larger_p, unit_values, widened


def replies(values: np.ndarray, tokens: int = 10) -> list[Record]:
    return [Record("drift", "general", "kl", f"{i:02d}", value=v, tokens=tokens + i) for i, v in enumerate(values)]


def texts(values: np.ndarray) -> list[Record]:
    return [Record("text", "story", "nll", f"{i:02d}", value=v, tokens=20 + i) for i, v in enumerate(values)]


def test_p_of_half_means_is_that_of_all_turned_signs() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.lognormal(0.5, 1, 9), rng.lognormal(0, 1, 9)
    weight = np.arange(10, 19)
    first, second = (unit_values([([], replies(values))])["kl"] for values in (one, other))
    means = half_means(first, second)
    assert means is not None
    assert len(means) == 2**9
    assert means[0] == pytest.approx(np.average(one - other, weights=weight))
    total = weight * (one - other)
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    assert bootstrap_p(means) == pytest.approx(np.mean(np.abs(signs @ total) >= abs(total.sum()) - 1e-9))


def test_units_are_means_over_the_seeds_and_of_every_figure_of_texts_or_replies() -> None:
    before, after, later = texts(np.zeros(3)), texts(np.array([1.0, 2.0, 3.0])), texts(np.array([3.0, 2.0, 3.0]))
    found = unit_values([(before, [*after, *replies(np.ones(2))]), (before, [*later, *replies(np.ones(2))])])
    assert found.keys() == {"perplexity_drift", "kl"}
    expected = {"00": (40.0, 20.0), "01": (42.0, 21.0), "02": (66.0, 22.0)}
    assert found["perplexity_drift"] == {("story", "nll", item): value for item, value in expected.items()}


def test_arms_of_other_replies_or_of_one_have_no_half_means() -> None:
    found = [
        unit_values([([], replies(np.ones(n), tokens))])["kl"] for n, tokens in ((4, 10), (5, 10), (4, 11), (1, 1))
    ]
    assert half_means(found[0], found[0]) is not None
    assert half_means(found[0], found[1]) is None
    assert half_means(found[0], found[2]) is None
    assert half_means(found[3], found[3]) is None
    assert np.isnan(larger_p(float("nan"), np.ones(3)))
    assert widened(Estimate(1.0), np.array([1.0, 0.0, 2.0])) == Estimate(1.0)


def test_a_difference_of_every_reply_is_seen_and_one_of_two_of_eight_is_not() -> None:
    values = np.random.default_rng(1).lognormal(0, 1, 8)
    unlike = values.copy()
    unlike[[2, 5]] *= 6
    arms = {name: [([], replies(v))] for name, v in {"a": values, "b": 1.1 * values, "c": unlike}.items()}
    assert frozenset("ab") in significant_pairs(arms, 1_000)["kl"]
    assert frozenset("ac") not in significant_pairs(arms, 1_000)["kl"]


@pytest.mark.parametrize(
    ("count", "sigma", "together"), [(8, 1.0, 0.0), (16, 1.5, 0.5), (24, 1.0, 0.8), (64, 1.5, 0.5)]
)
def test_arms_of_the_same_kl_are_called_different_5_times_in_100(count: int, sigma: float, together: float) -> None:
    """Draws alone: 10 to 20 times, and intervals of the difference that cover it 76 to 89 times."""
    rng, runs, wrong, covers, alone = np.random.default_rng([31, count]), 200, 0, 0, 0
    for seed in range(runs):
        shared, *own = rng.standard_normal((3, count))
        both = [np.exp(sigma * (np.sqrt(together) * shared + np.sqrt(1 - together) * z)) for z in own]
        drawn = {
            name: {"kl": weighted(((r, v, 1.0) for r, v in zip(replies(x), x, strict=True)), 300, seed, positive=True)}
            for name, x in zip("ab", both, strict=True)
        }
        units = {
            n: {"kl": {("", "", str(i)): (v, 1.0) for i, v in enumerate(x)}} for n, x in zip("ab", both, strict=True)
        }
        (found,) = differences(drawn, {"a": {}, "b": {}}, "a", units)
        low, high = found.value.low, found.value.high
        assert low is not None
        assert high is not None
        wrong, covers = wrong + (found.p < 0.05), covers + (low <= 0 <= high)
        plain = estimate(drawn["b"]["kl"] - drawn["a"]["kl"])
        alone += plain.low is not None and plain.high is not None and plain.low <= 0 <= plain.high
    assert wrong / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert covers / runs >= 0.93 - np.sqrt(0.05 * 0.95 / runs)
    assert alone < covers

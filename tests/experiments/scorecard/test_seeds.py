"""Figures over several seeds: the mean, an interval that covers, paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.scorecard import (
    over_seeds,
    scorecard,
)
from experiments.scorecard.bootstrap import estimate
from experiments.scorecard.seeds import resample_seeds
from tests.helpers.planted_run import base_records, trained


def test_seeds_widen_the_interval_and_their_mean_is_the_figure() -> None:
    rng = np.random.default_rng(6)
    base = base_records(rng, 300)
    runs = [(base, trained(rng, base, lost, 0.5)) for lost in (0.0, 0.1, 0.3)]
    found = over_seeds(runs, draws=500)["forgetting"]
    each = [scorecard(*run, draws=500)["forgetting"] for run in runs]
    assert found.value == pytest.approx(np.mean([e.value for e in each]))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > max((e.high or 0) - (e.low or 0) for e in each)
    with pytest.raises(ValueError, match=r"from 2 on .* but got 1"):
        over_seeds(runs[:1])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_coverage_over_seeds_that_differ_far_more_than_items(count: int) -> None:
    """The hard case for few seeds: seeds N(0, 1), no item noise. Where items dominate, coverage is theirs."""
    rng, hits, runs = np.random.default_rng(7), 0, 1000
    for seed in range(runs):
        values = np.repeat(rng.normal(size=(count, 1)), 401, axis=1)
        found = estimate(resample_seeds(values, seed))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / runs <= 0.97, hits / runs


def test_differences_over_seeds_are_those_of_the_paired_seeds() -> None:
    """An effect that is the same in every seed is certain, however far the seeds lie apart."""
    first = np.repeat(np.random.default_rng(8).normal(size=(3, 1)), 401, axis=1)
    difference = resample_seeds(first + 0.1, 0) - resample_seeds(first, 0)
    assert difference == pytest.approx(0.1)

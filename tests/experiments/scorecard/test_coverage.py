"""The statistics over simulated models whose truth is known: do 95 % intervals cover it, does the gate hold its rate?

Simulations are drawn as columns, not as records, so that 1,000 of them take seconds; `test_card.py` ties the two.
"""

from __future__ import annotations

import numpy as np
import pytest

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, bootstrap_p, estimate, resample, small_sample_factor, weighted
from experiments.scorecard.card import drawn_figures
from experiments.scorecard.flips import COUNTS, counts
from experiments.scorecard.inference import forgetting_bound, holm, non_inferior
from experiments.scorecard.sample import Sample

pytestmark = pytest.mark.slow

RUNS, DRAWS = 1000, 500
STRATUM = ("t", ("chat",))
CHANGES = np.array([counts((c0, None), (c, None), 4) for c0 in (0, 1) for c in (0, 1)])  # 2 c0 + c -> COUNTS


def planted(rng: np.random.Generator, n: int, a0: float, lost: float, won: float) -> Array:
    """(n, COUNTS): a right answer is lost with probability `lost`, a wrong one won with `won`."""
    before = rng.random(n) < a0
    after = np.where(before, rng.random(n) >= lost, rng.random(n) < won)
    return np.asarray(CHANGES[2 * before + after])


def drawn(values: Array, seed: int, draws: int = DRAWS) -> Array:
    return resample({(STRATUM, f"{i:04d}"): row for i, row in enumerate(values)}, draws, seed)[STRATUM]


def figures_of(sums: Array) -> dict[str, Array]:
    """Gain, retention and forgetting of a sample with these sums, for the new task and the kept ones."""
    totals = dict(zip(COUNTS, sums.T, strict=True))
    sample = Sample([], [])
    sample.new = sample.kept = totals
    return drawn_figures(sample, ("gain", "retention", "forgetting"))


def covered(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def test_intervals_cover_the_truth_95_times_in_100() -> None:
    """Gain, forgetting, retention, and the difference of two arms that answer the same questions."""
    rng, a0, (lost, won), (lost2, won2) = np.random.default_rng(11), 0.8, (0.15, 0.10), (0.25, 0.10)
    after, after2 = a0 * (1 - lost) + (1 - a0) * won, a0 * (1 - lost2) + (1 - a0) * won2
    truths = {
        "gain": after - a0,
        "forgetting": a0 - after,
        "retention": after / a0,
        "difference": (after2 - after) / a0,
    }
    hits = dict.fromkeys(truths, 0)
    for seed in range(RUNS):
        before = rng.random(150) < a0
        sums = []
        for worse, better in ((lost, won), (lost2, won2)):
            later = np.where(before, rng.random(150) >= worse, rng.random(150) < better)
            sums.append(drawn(CHANGES[2 * before + later], seed))
        first, second = (figures_of(s) for s in sums)
        figures = {**first, "difference": second["retention"] - first["retention"]}
        for name, truth in truths.items():
            hits[name] += covered(estimate(figures[name]), truth)
    assert all(0.93 <= hit / RUNS <= 0.97 for hit in hits.values()), hits


@pytest.mark.parametrize("units", [4, 8, 16])
def test_intervals_of_few_texts_cover_the_truth(units: int) -> None:
    """8 windows of text, 16 replies: percentiles of the plain bootstrap would cover 80 to 92 times in 100."""
    rng, hits, plain = np.random.default_rng(13), 0, 0
    for seed in range(RUNS):
        values = rng.normal(0.05, 0.1, units)
        rows = [(Record("text", "story", "nll", f"{i:02d}", value=v, tokens=1), v, 1.0) for i, v in enumerate(values)]
        found = weighted(rows, DRAWS, seed)
        hits += covered(estimate(found), 0.05)
        plain += covered(estimate(values.mean() + (found - values.mean()) / small_sample_factor(units)), 0.05)
    assert 0.93 <= hits / RUNS <= 0.97, hits / RUNS
    assert plain < hits


def test_one_text_has_no_interval() -> None:
    found = estimate(weighted([(Record("text", "story", "nll", "0", value=0.3, tokens=9), 0.3, 9.0)], DRAWS, 0))
    assert (found.value, found.low, found.high) == (0.3, None, None)


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [
        (400, 0.0125, 0.0),
        pytest.param(400, 0.05, 0.15, marks=pytest.mark.slow),
        pytest.param(1600, 0.02, 0.03, marks=pytest.mark.slow),
    ],
)
def test_the_gate_passes_at_most_5_in_100_models_that_forget_just_the_margin(n: int, lost: float, won: float) -> None:
    """Rare flips are the hard case: the bootstrap alone passes too many."""
    rng, a0 = np.random.default_rng(3), 0.8
    margin = a0 * lost - (1 - a0) * won
    assert 0 < margin < 0.02
    runs = 400
    passed = alone = 0
    for seed in range(runs):
        values = planted(rng, n, a0, lost, won)
        sums = drawn(values, seed, 200)
        kept = {name: s[:] for name, s in zip(COUNTS, sums.T, strict=True)}
        forgetting = estimate((kept["before"] - kept["after"]) / kept["n"])
        assert forgetting.high is not None
        bound = forgetting_bound(forgetting, kept["lost"][0] / n, kept["won"][0] / n, n)
        passed += non_inferior(bound, margin)
        alone += forgetting.high < margin
    assert passed / runs <= 0.05
    assert passed <= alone
    if won == 0:
        assert alone / runs > 0.10


def test_holm_keeps_the_family_error_at_5_in_100_where_single_tests_do_not() -> None:
    """Five arms that forget as much as the reference: how often is any of them called different?"""
    rng, runs, any_single, any_holm = np.random.default_rng(5), 200, 0, 0
    for seed in range(runs):
        base = rng.random(200) < 0.8
        columns = [np.where(base, rng.random(200) >= 0.15, rng.random(200) < 0.1) for _ in range(6)]
        sums = drawn(np.stack(columns, axis=1).astype(float), seed, 400)
        p = [bootstrap_p(sums[:, i] - sums[:, 0]) for i in range(1, 6)]
        any_single += min(p) < 0.05
        any_holm += min(holm(p)) < 0.05
    assert any_holm / runs <= 0.08  # 5 % within 2 standard errors of 200 runs
    assert any_single / runs > 0.10

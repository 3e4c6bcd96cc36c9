"""Which arms differ: against statsmodels' Holm, over simulated arms of which some are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from experiments.scorecard import apart, drawn_over_seeds
from experiments.scorecard.bootstrap import bootstrap_p
from tests.experiments.scorecard.simulated import base_records, kept, trained

BASE = base_records(np.random.default_rng(0), 200)


def arm(seed: int, lost: float, draws: int = 2_000) -> dict[str, np.ndarray]:
    return drawn_over_seeds([(BASE, trained(np.random.default_rng(seed), BASE, lost, 0.0))], draws, 0)


def test_pairs_are_those_that_holms_correction_leaves() -> None:
    arms = {"none": arm(1, 0.0), "little": arm(2, 0.08), "some": arm(3, 0.12), "much": arm(4, 0.5)}
    found = apart(arms)
    pairs = list(itertools.combinations(arms, 2))
    p = [bootstrap_p(arms[a]["retention"] - arms[b]["retention"]) for a, b in pairs]
    holds = multipletests(p, 0.05, "holm")[0]
    assert found["retention"] == {frozenset(pair) for pair, different in zip(pairs, holds, strict=True) if different}
    assert frozenset(("none", "much")) in found["retention"]
    assert frozenset(("little", "some")) not in found["retention"]


def test_paired_differences_see_what_overlapping_intervals_hide() -> None:
    """The same questions: one arm loses what the other loses and a little more."""
    less = trained(np.random.default_rng(1), BASE, 0.2, 0.0)
    too = [i for i, r in enumerate(less) if r.suite == "kept" and r.correct][:12]
    more = [kept(int(r.item), 1, r.task) if i in too else r for i, r in enumerate(less)]
    arms = {name: drawn_over_seeds([(BASE, after)], 2_000, 0) for name, after in (("less", less), ("more", more))}
    low, high = (np.percentile(arms[name]["retention"][1:], q) for name, q in (("less", 2.5), ("more", 97.5)))
    assert low < high
    assert apart(arms)["retention"] == {frozenset(("less", "more"))}


@pytest.mark.slow
def test_arms_that_are_the_same_are_seldom_told_apart() -> None:
    """Of 60 families of four equal arms 5 % may hold a difference: more than 8 have a probability of .4 %."""
    wrongly = sum(
        bool(apart({str(i): arm(4 * family + i, 0.1, 1_000) for i in range(4)})["retention"]) for family in range(60)
    )
    assert wrongly <= 8


def test_several_seeds_are_told_apart_by_their_mean() -> None:
    runs = {name: [trained(np.random.default_rng(10 * i + seed), BASE, lost, 0.0) for seed in range(3)]
            for i, (name, lost) in enumerate((("a", 0.05), ("b", 0.6)))}  # fmt: skip
    arms = {name: drawn_over_seeds([(BASE, after) for after in tuned], 1_000, 0) for name, tuned in runs.items()}
    assert apart(arms)["retention"] == {frozenset(("a", "b"))}


@pytest.mark.parametrize(("count", "known"), [(2, True), (4, False)])
def test_a_figure_is_left_out_where_so_few_draws_can_tell_nothing(count: int, known: bool) -> None:
    """With 100 draws the least p is .02, which is .12 for 6 pairs."""
    arms = {str(i): arm(i, 0.1 * i, draws=100) for i in range(count)}
    assert ("retention" in apart(arms)) == known
    assert apart({"alone": arm(0, 0.1, draws=100)}) == {}

"""Which arms differ: against statsmodels' Holm, over simulated arms of which some are the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from experiments.records import Record
from experiments.scorecard import drawn_over_seeds, significant_pairs
from experiments.scorecard.bootstrap import bootstrap_p
from experiments.scorecard.pairwise import net_correct, other_questions, paired_p
from tests.helpers.planted_run import base_records, kept, trained

Seeds: TypeAlias = list[tuple[list[Record], list[Record]]]  # of one arm
BASE = base_records(np.random.default_rng(0), 200)


def arm(seed: int, lost: float) -> Seeds:
    return [(BASE, trained(np.random.default_rng(seed), BASE, lost, 0.0))]


def sign_p(first: list[Record], second: list[Record]) -> float:
    """Of the kept questions that were answered differently."""
    marks = [(a.correct or 0) - (b.correct or 0) for a, b in zip(first, second, strict=True) if a.suite == "kept"]
    differ = [mark for mark in marks if mark]
    return float(binomtest(sum(mark > 0 for mark in differ), len(differ)).pvalue)


def test_pairs_are_those_that_holms_correction_leaves() -> None:
    arms = {"none": arm(1, 0.0), "little": arm(2, 0.08), "some": arm(3, 0.12), "much": arm(4, 0.5)}
    found = significant_pairs(arms, 2_000)
    pairs = list(itertools.combinations(arms, 2))
    drawn = {name: drawn_over_seeds(runs, 2_000, 0)["retention"] for name, runs in arms.items()}
    p = [max(bootstrap_p(drawn[a] - drawn[b]), sign_p(arms[a][0][1], arms[b][0][1])) for a, b in pairs]
    holds = multipletests(p, 0.05, "holm")[0]
    assert found["retention"] == {frozenset(pair) for pair, different in zip(pairs, holds, strict=True) if different}
    assert frozenset(("none", "much")) in found["retention"]
    assert frozenset(("little", "some")) not in found["retention"]


def test_paired_differences_see_what_overlapping_intervals_hide() -> None:
    """The same questions: one arm loses what the other loses and a little more."""
    less = trained(np.random.default_rng(1), BASE, 0.2, 0.0)
    too = [i for i, r in enumerate(less) if r.suite == "kept" and r.correct][:12]
    more = [kept(int(r.item), 1, r.task) if i in too else r for i, r in enumerate(less)]
    arms = {name: [(BASE, after)] for name, after in (("less", less), ("more", more))}
    drawn = {name: drawn_over_seeds(runs, 2_000, 0)["retention"][1:] for name, runs in arms.items()}
    assert np.percentile(drawn["less"], 2.5) < np.percentile(drawn["more"], 97.5)
    assert significant_pairs(arms, 2_000)["retention"] == {frozenset(("less", "more"))}


@pytest.mark.slow
def test_arms_that_are_the_same_are_seldom_told_apart() -> None:
    """Of 60 families of four equal arms 5 % may hold a difference: more than 8 have a probability of .4 %."""
    wrongly = sum(
        bool(significant_pairs({str(i): arm(4 * family + i, 0.1) for i in range(4)}, 1_000)["retention"])
        for family in range(60)
    )
    assert wrongly <= 8


def test_several_seeds_are_told_apart_by_their_mean() -> None:
    runs = {name: [trained(np.random.default_rng(10 * i + seed), BASE, lost, 0.0) for seed in range(3)]
            for i, (name, lost) in enumerate((("a", 0.05), ("b", 0.6)))}  # fmt: skip
    arms = {name: [(BASE, after) for after in tuned] for name, tuned in runs.items()}
    assert significant_pairs(arms, 1_000)["retention"] == {frozenset(("a", "b"))}


def test_arms_of_unequal_numbers_of_seeds_are_compared_by_their_means() -> None:
    """A seed that failed: one arm has 3 seeds, the other 2 of the same answers."""
    worse = trained(np.random.default_rng(1), BASE, 0.3, 0.0)
    three, two = (net_correct([(BASE, worse)] * count) for count in (3, 2))
    assert three == two
    assert any(won or lost for won, lost in three.values())
    draws = np.array([0.2, *[0.1] * 100])  # of a difference that the bootstrap finds
    assert paired_p("retention", draws, np.zeros(101), three, two) == 1
    half = net_correct([(BASE, worse), (BASE, BASE)])
    assert paired_p("retention", draws, np.zeros(101), half, three) < 0.05


@pytest.mark.parametrize(("count", "known"), [(2, True), (4, False)])
def test_a_figure_is_left_out_where_so_few_draws_can_tell_nothing(count: int, known: bool) -> None:
    """With 100 draws the least p is .02, which is .12 for 6 pairs."""
    arms = {str(i): arm(i, 0.1 * i) for i in range(count)}
    assert ("retention" in significant_pairs(arms, 100)) == known
    assert significant_pairs({"alone": arm(0, 0.1)}, 100) == {}


@pytest.mark.parametrize(("count", "significant"), [(5, False), (6, True)])
def test_few_questions_that_differ_are_judged_by_the_exact_test(count: int, significant: bool) -> None:
    """All one way: 2 * 2^-5 = .0625 and 2 * 2^-6 = .031; resampling alone gives about .05 and .02."""
    right = [i for i, r in enumerate(BASE) if r.suite == "kept" and r.correct][:count]
    worse = [kept(int(r.item), 1, r.task) if i in right else r for i, r in enumerate(BASE)]
    drawn = [drawn_over_seeds([(BASE, after)], 10_000, 0)["retention"] for after in (BASE, worse)]
    assert bootstrap_p(drawn[0] - drawn[1]) < 0.0625
    assert bool(significant_pairs({"same": [(BASE, BASE)], "worse": [(BASE, worse)]})["retention"]) == significant


def test_flips_are_judged_by_the_answers_that_flipped() -> None:
    """An arm that lost 10 answers and won 10 others keeps its retention; the lost ones are shown all the same."""
    own = [i for i, r in enumerate(BASE) if r.suite == "kept"]
    turned = {i for mark in (0, 1) for i in [i for i in own if BASE[i].correct == mark][:10]}
    after = [kept(int(r.item), r.correct or 0, r.task) if i in turned else r for i, r in enumerate(BASE)]
    arms = {"same": [(BASE, BASE)], "turned": [(BASE, after)]}
    both = frozenset(("same", "turned"))
    found = significant_pairs(arms, 2_000)
    assert (found["nfr"], found["pfr"], found["retention"]) == ({both}, {both}, frozenset())
    answers = {name: net_correct(runs) for name, runs in arms.items()}
    drawn = {name: drawn_over_seeds(runs, 2_000, 0)["nfr"] for name, runs in arms.items()}
    p = paired_p("nfr", drawn["turned"], drawn["same"], answers["turned"], answers["same"])
    assert p == pytest.approx(max(2 * 0.5**10, bootstrap_p(drawn["turned"] - drawn["same"])))


def asked_otherwise(runs: Seeds, **changes: object) -> Seeds:
    """Change the kept records of both sides; {item} is the item's own."""

    def change(record: Record) -> Record:
        given = {k: v.replace("{item}", record.item) if isinstance(v, str) else v for k, v in changes.items()}
        return replace(record, **given) if record.suite == "kept" else record

    return [(list(map(change, base)), list(map(change, after))) for base, after in runs]


@pytest.mark.parametrize(
    "changes",
    [
        {"item": "other {item}"},
        {"form": "plain"},
        {"prompt": "b" * 12},
        {"options": ("a", "b", "c", "x")},
        {"answer": 2},
    ],
)
def test_arms_that_answered_other_questions_are_refused(changes: dict[str, object]) -> None:
    first = asked_otherwise(arm(1, 0.1), prompt="a" * 12, answer=0)
    arms = {"first": first, "same": asked_otherwise(arm(2, 0.1), prompt="a" * 12, answer=0), "else": first}
    assert other_questions(arms) == ""
    arms["else"] = asked_otherwise(first, **changes)
    with pytest.raises(ValueError, match="else answered other questions than first in kept: only answers"):
        significant_pairs(arms, 100)


def test_records_that_do_not_say_what_was_asked_are_taken_by_their_ids() -> None:
    arms = {"old": arm(1, 0.1), "newer": asked_otherwise(arm(2, 0.1), prompt="a" * 12, answer=0)}
    assert other_questions(arms) == ""


def test_seeds_with_questions_of_their_own_are_compared_seed_by_seed() -> None:
    def seeds(lost: float, numbers: tuple[int, ...]) -> Seeds:
        return [asked_otherwise(arm(10 + n, lost), item=f"{n} {{item}}")[0] for n in numbers]

    assert significant_pairs({"a": seeds(0.05, (0, 1)), "b": seeds(0.6, (0, 1))}, 1_000)["retention"]
    for numbers in ((0, 2), (1, 0), (0,), (0, 1, 2)):
        assert other_questions({"a": seeds(0.05, (0, 1)), "b": seeds(0.6, numbers)}) == (
            "b answered other questions than a in kept"
        )
    same = {"three": arm(1, 0.1) * 3, "two": arm(2, 0.1) * 2}
    assert other_questions(same) == ""

"""Figures over several seeds: the mean, an interval that covers, paired differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.records import Estimate, Record
from experiments.scorecard import mean_card, mean_estimate, over_seeds, scorecard
from experiments.scorecard.bootstrap import bootstrap_p, estimate, resample
from experiments.scorecard.figures import bounded
from experiments.scorecard.halves import even
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


@pytest.mark.parametrize("count", [2, 3, 10])
def test_intervals_of_rates_end_at_1_and_cover_as_often(count: int) -> None:
    """Seeds with accuracies near 1: without bounds many intervals pass 1, and as many have the true mean."""
    rng, runs, hits, short = np.random.default_rng(7), 1000, [0, 0], 0
    for seed in range(runs):
        values = np.repeat(rng.beta(19, 1, size=(count, 1)), 401, axis=1)
        free = estimate(resample_seeds(values, seed))
        short += (free.high or 0) > 1
        for i, found in enumerate((free, bounded("new_accuracy", free))):
            assert found.low is not None
            assert found.high is not None
            assert found.low <= found.value <= found.high
            hits[i] += found.low <= 0.95 <= found.high
        assert found.high <= 1
    assert hits[0] == hits[1] >= 0.88 * runs  # Beta(19, 1) is skewed: t covers 88 to 95
    assert short > (0.01 if count == 10 else 0.2) * runs


@pytest.mark.parametrize(
    ("name", "ends", "bounded_ends"),
    [
        ("gain", (0.87, 1.02), (0.87, 1)),
        ("gain", (-1.2, -0.9), (-1, -0.9)),
        ("kl", (-0.3, 5.2), (0, 5.2)),
        ("retention", (-0.1, 1.3), (0, 1.3)),
        ("retention/capitals", (-0.1, 1.3), (0, 1.3)),
        ("retention_chat", (-0.1, 1.3), (0, 1.3)),
        ("perplexity_drift", (-0.3, 1.4), (-0.3, 1.4)),
        ("no figure", (-2, 2), (-2, 2)),
    ],
)
def test_an_interval_ends_where_the_values_of_its_figure_end(
    name: str, ends: tuple[float, float], bounded_ends: tuple[float, float]
) -> None:
    found = bounded(name, Estimate(0.95, *ends))
    assert (found.low, found.high) == bounded_ends
    assert bounded(name, Estimate(0.95)) == Estimate(0.95)


def test_a_gain_over_seeds_does_not_pass_1() -> None:
    rng = np.random.default_rng(9)
    base = [replace(r, correct=0) if r.suite == "new" else r for r in base_records(rng, 80)]
    runs = [(base, trained(rng, base, 0.1, won)) for won in (0.8, 0.97, 1.0)]
    assert over_seeds(runs, draws=500)["gain"].high == 1


def test_differences_over_seeds_are_those_of_the_paired_seeds() -> None:
    """An effect that is the same in every seed is certain, however far the seeds lie apart."""
    first = np.repeat(np.random.default_rng(8).normal(size=(3, 1)), 401, axis=1)
    difference = resample_seeds(first + 0.1, 0) - resample_seeds(first, 0)
    assert difference == pytest.approx(0.1)


def with_suite(records: list[Record], suite: str, **changes: str) -> list[Record]:
    return [replace(r, **changes) if r.suite == suite else r for r in records]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"suite": "kept", "task": "others"}, "kept/facts0/chat, kept/facts1/chat, kept/others/chat"),
        ({"suite": "kept", "form": "plain"}, "kept/facts0/chat, kept/facts0/plain, "),
        ({"suite": "new", "task": "others"}, "new/others/generate, new/sums/generate"),
    ],
)
def test_seeds_that_were_measured_on_other_tasks_have_no_mean(changes: dict[str, str], named: str) -> None:
    rng = np.random.default_rng(9)
    base = base_records(rng, 80)
    runs = [(base, trained(rng, base, lost, 0.5)) for lost in (0.1, 0.2)]
    runs.append((with_suite(base, **changes), with_suite(runs[0][1], **changes)))
    with pytest.raises(ValueError, match=f"seed 1 and seed 3 of 3 were not measured on the same tasks: {named}"):
        over_seeds(runs, draws=100)
    without = [[r for r in side if r.suite != changes["suite"]] for side in runs[0]]
    with pytest.raises(ValueError, match=f"seed 1 and seed 2 of 2 .*: {changes['suite']}/.* in one of them alone"):
        over_seeds([runs[0], (without[0], without[1])], draws=100)


def test_each_seed_may_draw_its_own_questions() -> None:
    """As the seeds of a study do: the mean is that of the seeds, and the half that is reported may lack a task."""
    rng = np.random.default_rng(9)
    runs = []
    for seed in range(2):
        base = [replace(r, item=f"{seed} {r.item}") for r in base_records(rng, 80)]
        runs.append((base, [replace(r, correct=1 - (r.correct or 0)) if r.suite == "new" else r for r in base]))
    means = [np.mean([r.correct for r in after if r.suite == "new"]) for _, after in runs]
    before = [np.mean([r.correct for r in base if r.suite == "new"]) for base, _ in runs]
    assert over_seeds(runs, draws=100)["gain"].value == pytest.approx(np.mean(means) - np.mean(before))
    few = (replace(runs[0][0][0], task="few", item=str(i)) for i in range(9))
    chosen = next(record for record in few if even(record))
    more = [([*base, chosen], [*after, chosen]) for base, after in runs]
    assert "retention/few" in over_seeds(more, draws=100)
    assert "retention/few" not in over_seeds(more, draws=100, choosing=False)


def answered_again(rng: np.random.Generator, right: np.ndarray, count: int, spread: float, common: float) -> np.ndarray:
    """Answers (questions, seeds) of one arm to questions that the base has `right` or not.

    Seeds win .4 of what is wrong, +- spread, and lose .1; a share `common` of the questions goes the same way in all.
    """
    rates = np.clip(0.4 + spread * rng.standard_normal(count), 0, 1)
    luck = np.where(rng.random((len(right), 1)) < common, rng.random((len(right), 1)), rng.random((len(right), count)))
    return np.where(right[:, None], luck >= 0.1, luck < rates).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "common", "questions", "spread"),
    [(2, 0.0, 64, 0.15), (3, 0.5, 200, 0.1), (5, 0.0, 64, 0.0), (5, 0.9, 200, 0.0)],
)
def test_intervals_of_seeds_on_the_same_questions_cover(
    count: int, common: float, questions: int, spread: float
) -> None:
    """With s of each draw in place of the observed one, 99 to 100 of 100 covered, and no equal arms had p < .05."""
    rng, runs, hits, alarms = np.random.default_rng([53, count, questions]), 400, 0, 0
    for seed in range(runs):
        right = rng.random(questions) < 0.5
        arms = [answered_again(rng, right, count, spread, common) for _ in range(2)]
        rows = {(("t", ("f",)), f"{i:03d}"): np.concatenate([arm[i] for arm in arms]) for i in range(questions)}
        sums = resample(rows, 200, seed)["t", ("f",)].T / questions
        drawn = [resample_seeds(sums[part], seed) for part in (slice(count), slice(count, None))]
        found = estimate(drawn[0])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 * 0.9 + 0.5 * 0.4 <= found.high
        alarms += bootstrap_p(drawn[1] - drawn[0]) < 0.05
    error = np.sqrt(0.05 * 0.95 / runs)
    assert 0.93 - error <= hits / runs <= 0.99, hits / runs
    assert alarms / runs <= 0.05 + 2 * error, alarms / runs


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.0, 1.0, 5.0])
def test_means_over_seeds_without_their_items_cover(apart: float, count: int) -> None:
    """Ends were means too, so equal arms of seeds that differ had intervals that often did not overlap.

    apart: the standard deviation between seeds, in those of the questions, which all seeds share.
    """
    rng = np.random.default_rng(count)
    drawn = rng.standard_normal((2000, 1)) + apart * rng.standard_normal((2000, count))
    found = [mean_estimate([Estimate(x, x - 1.96, x + 1.96) for x in map(float, row)]) for row in drawn]
    covered = np.mean([one.low <= 0 <= one.high for one in found if one.low is not None and one.high is not None])
    assert 0.93 <= covered <= (0.99 if apart == 1 else 0.98)  # two errors of one size: both ends are taken of both


def test_a_mean_over_seeds_by_hand() -> None:
    own = [Estimate(0.2, 0.1, 0.4), Estimate(0.4, 0.3, 0.6), Estimate(0.6, 0.5, 0.8)]
    error = 4.302653 * 0.2 / 3**0.5  # t of 2 degrees of freedom
    mean = mean_estimate(own)
    assert (mean.value, mean.low, mean.high) == pytest.approx(
        (0.4, 0.4 - (0.1**2 + error**2) ** 0.5, 0.4 + (0.2**2 + error**2) ** 0.5)
    )
    assert mean_estimate([own[0], Estimate(0.4, None, None)]).low is None
    one = mean_estimate(own[:1])
    assert (one.value, one.low, one.high) == pytest.approx((0.2, 0.1, 0.4))
    cards = [{"retention": Estimate(0.1, 0.0, 0.2)}, {"retention": Estimate(0.9, 0.8, 1.0)}]
    assert mean_card(cards)["retention"].low == 0, "an interval ends where the values of its figure end"

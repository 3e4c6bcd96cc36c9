"""Flips, and the chance and persistence corrections, over guessing models whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.flips import COUNTS, answers_key, counts, distinct_keys, with_unseen
from tests.helpers.planted_run import kept


def test_flips_match_a_hand_count() -> None:
    """Option 0 is right. Lost: items 0, 1; won: 2; wrong -> another wrong one: 3; the same wrong one: 4."""
    before, after = (0, 0, 1, 1, 2, 0, 0, 0), (1, 3, 0, 2, 2, 0, 0, 0)
    base, tuned = ([kept(i, c) for i, c in enumerate(choices)] for choices in (before, after))
    card = scorecard(base, tuned, draws=100)
    assert card["nfr"].value == pytest.approx(2 / 8)
    assert card["nfr_mc"].value == pytest.approx(3 / 8)
    beside = aa_floor(base, base, tuned, draws=100)
    assert beside["persistence_corrected"].value == pytest.approx(4 / 3 * (2 / 8 - (1 / 8) / 2))
    assert beside["floor_persistence_corrected"].value == 0
    assert "persistence_corrected" not in card  # never without the floor
    guessed = (3 / 8) * (4 / 8) / 3
    assert card["samplewise_forgetting"].value == pytest.approx(2 / 8 - guessed)
    assert card["samplewise_backward"].value == pytest.approx(1 / 8 - guessed)


def test_corrections_remove_what_a_guesser_flips() -> None:
    """Half of the items are known and stay known, half are guessed anew each time: nothing is forgotten, yet answers
    flip. The persistence correction is unbiased there; the raw rate is not; the chance term of sample-wise forgetting
    takes away less, since it takes all items for equal."""
    rng, n = np.random.default_rng(1), 40_000
    known = rng.random(n) < 0.5
    rows = [np.where(known, 0, rng.integers(0, 4, n)) for _ in range(2)]
    values = np.array(
        [counts((int(a == 0), str(a)), (int(b == 0), str(b)), 4) for a, b in zip(*rows, strict=True)], dtype=float
    )
    mean = dict(zip(COUNTS, values.mean(axis=0), strict=True))
    assert mean["lost"] == pytest.approx(0.5 * (1 / 4) * (3 / 4), abs=0.006)
    assert mean["corrected"] == pytest.approx(0.0, abs=0.006)


def test_persistence_correction_finds_planted_forgetting() -> None:
    """Of the known items a share of .2 is guessed afterwards: F = .8 * .2 of them lost from memory."""
    rng, n = np.random.default_rng(2), 40_000
    known = rng.random(n) < 0.8
    forgotten = known & (rng.random(n) < 0.2)
    before = np.where(known, 0, rng.integers(0, 4, n))
    after = np.where(known & ~forgotten, 0, rng.integers(0, 4, n))
    corrected = [
        counts((int(a == 0), str(a)), (int(b == 0), str(b)), 4)[-1] for a, b in zip(before, after, strict=True)
    ]
    assert np.mean(corrected) == pytest.approx(0.8 * 0.2, abs=0.008)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(2, 6))
def test_counts_of_one_answer_are_consistent(first: int, second: int, k: int) -> None:
    row = dict(zip(COUNTS, counts((int(first == 0), str(first)), (int(second == 0), str(second)), k), strict=True))
    assert row["before"] - row["after"] == row["lost"] - row["won"]
    assert row["lost"] <= row["flipped"] <= 1
    assert row["flipped"] == float(first != second and second != 0)
    assert row["eligible"] == float(k >= 3)


def test_generated_answers_have_no_choice_flips() -> None:
    card = scorecard([dataclasses.replace(kept(1, 0), choice=None, options=None)], [kept(1, 1)], draws=100)
    assert "nfr_mc" not in card
    assert card["nfr"].value == 1


@pytest.mark.parametrize("right", [True, False])
def test_of_answers_that_are_all_right_a_missed_gain_was_wrong_before(right: bool) -> None:
    """With nothing to win in the sample, each draw could only lose: intervals of gain ended at 0."""
    n, rows = 24.0, 2001
    still = {name: np.zeros(rows) for name in COUNTS} | {"n": np.full(rows, n)}
    still |= {name: np.full(rows, n * right) for name in ("before", "after")}
    found = with_unseen(still, 1.0, (0, 0))
    gain = found["after"] - found["before"]
    assert gain[0] == 0
    assert 0.4 < (gain[1:] > 0).mean() < 0.6
    assert gain[1:].min() < -1 < 1 < gain[1:].max()
    assert all(0 <= found[name].min() <= found[name].max() <= n for name in ("before", "after"))


@pytest.mark.parametrize(("right", "size"), [(3.0, 2.0), (1.0, 1.0), (8.0, 2.0)])
def test_missed_flips_of_few_questions_leave_the_base_some_answers(right: float, size: float) -> None:
    """Retention is a ratio to them: with none left in a few draws it would have no interval."""
    rows = 5001
    still = {name: np.zeros(rows) for name in COUNTS} | {"n": np.full(rows, 8.0)}
    still |= {name: np.full(rows, right) for name in ("before", "after")}
    found = with_unseen(still, size, (0, 0))
    assert found["before"].min() >= min(right, size)
    assert found["before"].max() <= 8


@pytest.mark.parametrize(("k", "back"), [(3, 1.0), (4, 0.5), (10, 1 / 8)])
def test_corrected_flips_may_have_been_missed_as_others(k: int, back: float) -> None:
    """k/(k-1) (lost - moved/(k-2)) of 0.75 missed flips of each kind: .75 k/(k-1) (1 - 1/(k-2)) on the mean."""
    rows = 20_001
    still = {name: np.zeros(rows) for name in COUNTS} | {
        name: np.full(rows, 40.0 * share)
        for name, share in {"n": 1.0, "before": 0.7, "after": 0.7, "guess": 1 / (k - 1), "eligible": 1.0}.items()
    }
    found = with_unseen(still, 1.0, (0, 0))["corrected"]
    assert found[0] == 0
    assert found[1:].mean() == pytest.approx(0.75 * k / (k - 1) * (1 - back), abs=0.04)
    assert found[1:].min() < -back < 2 < found[1:].max()
    assert not with_unseen({**still, "eligible": np.zeros(rows)}, 1.0, (0, 0))["corrected"].any()


def test_arms_that_answer_the_same_questions_rightly_have_keys_of_their_own() -> None:
    one = [kept(i, i % 3) for i in range(6)]
    other = [kept(i, 2 * (i % 3) % 3) for i in range(6)]  # options 1 and 2, both wrong, are exchanged
    keys = distinct_keys(
        {"one": one, "other": other, "same": one[::-1], "again": other, "worse": [kept(0, 1), *one[1:]]}
    )
    assert answers_key(one) == answers_key(other) == keys["one"] == keys["same"]
    assert keys["other"] == keys["again"]
    assert len(set(keys.values())) == 3

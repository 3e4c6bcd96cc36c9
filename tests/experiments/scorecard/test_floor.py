"""The A/A floor: flips of a base that was asked again, over guessing models whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.records import Estimate, Record
from experiments.scorecard import aa_floor, scorecard
from tests.helpers.planted_run import OPTIONS, base_records, kept, new, trained


def reordered(records: list[Record], order: tuple[int, ...]) -> list[Record]:
    """The same answers under another order of the options."""
    options = tuple(OPTIONS[i] for i in order)
    return [dataclasses.replace(r, options=options, choice=order.index(r.choice or 0)) for r in records]


def test_the_floor_compares_texts_not_places() -> None:
    base = [r for r in base_records(np.random.default_rng(0), 100) if r.suite == "kept"]
    again = reordered(base, (2, 0, 3, 1))
    floor = aa_floor(base, again, draws=200)
    assert {floor[name].value for name in ("floor_nfr", "floor_pfr", "floor_nfr_mc")} == {0.0}


def test_a_rate_of_the_floor_has_the_interval_that_the_same_answers_of_an_arm_have() -> None:
    """Where no answer flipped, draws with flips that the sample may have missed exclude 0."""
    base = [r for r in base_records(np.random.default_rng(0), 100) if r.suite == "kept"]
    floor, arm = aa_floor(base, base, draws=200), scorecard(base, base, draws=200)
    for name in ("nfr", "pfr", "nfr_mc"):
        assert floor[f"floor_{name}"] == arm[name]
        assert (floor[f"floor_{name}"].low, floor[f"floor_{name}"].value) == (0, 0)


def is_open(above: Estimate, by: float) -> bool:
    """Whether a distance of 0 may be off by more than `by` in both directions."""
    return above.value == 0 and (above.low or 0) < -by and (above.high or 0) > by


def test_a_model_and_a_floor_without_flips_may_still_differ() -> None:
    """Of 12 questions without a flip nobody knows whether one in a hundred flips: a gate on the distance must fail."""
    base = [r for r in base_records(np.random.default_rng(0), 12) if r.suite == "kept"]
    above = aa_floor(base, base, base, draws=400)["nfr_above_floor"]
    assert is_open(above, 0.05)


def test_the_floor_of_retention_is_the_ratio_of_right_answers() -> None:
    base = [r for r in base_records(np.random.default_rng(1), 100) if r.suite == "kept"]
    again = [dataclasses.replace(r, correct=0, choice=None) if i % 3 == 0 else r for i, r in enumerate(base)]
    right = [sum(r.correct or 0 for r in records) for records in (base, again)]
    card = aa_floor(base, again, draws=200)
    found = card["floor_retention"]
    assert card["floor_retention/facts1"].value < 1
    assert found.value == pytest.approx(right[1] / right[0])
    assert found.low is not None
    assert found.low < found.value < (found.high or 0)
    assert aa_floor(base, base, draws=200)["floor_retention"].value == 1


def test_flips_above_the_floor_are_zero_for_a_model_that_only_flips_as_the_base_does() -> None:
    rng = np.random.default_rng(3)
    base = base_records(rng, 600)
    shaky = [trained(rng, base, 0.1, 0.0) for _ in range(2)]
    card = aa_floor(base, shaky[0], shaky[1], draws=1000)
    assert card["floor_nfr"].value == pytest.approx(0.08, abs=0.03)
    low, high = card["nfr_above_floor"].low, card["nfr_above_floor"].high
    assert low is not None
    assert high is not None
    assert low <= 0 <= high
    worse = aa_floor(base, shaky[0], trained(rng, base, 0.3, 0.0), draws=1000)
    assert (worse["nfr_above_floor"].low or 0) > 0.05


def test_a_model_that_answers_as_the_reworded_base_may_still_flip_more() -> None:
    """Of 120 questions: the same answers again are no proof that none would be lost."""
    base, model = ([kept(i, wrong if i % 4 == 0 else 0, "facts") for i in range(120)] for wrong in (1, 2))
    above = aa_floor(base, base, model, draws=1000)["nfr_above_floor"]
    assert is_open(above, 0.005)


def test_the_floor_leaves_out_tasks_that_were_not_asked_again() -> None:
    base = [r for r in base_records(np.random.default_rng(0), 100) if r.suite == "kept"]
    harness = [Record("kept", "arc_challenge", "lm_eval", str(i), correct=1) for i in range(50)]
    floor = aa_floor(base, base, draws=200)
    assert aa_floor([*base, *harness], base, draws=200) == floor
    worse = [dataclasses.replace(r, correct=0) for r in harness]
    assert aa_floor([*base, *harness], base, [*base, *worse], draws=200)["nfr_above_floor"].value == 0


def test_the_floor_may_ask_in_other_words_what_a_tuned_model_may_not() -> None:
    base = [dataclasses.replace(r, prompt="one") for r in base_records(np.random.default_rng(0), 100)]
    again = [dataclasses.replace(r, prompt="other", correct=0, choice=None) for r in base if r.suite == "kept"]
    assert aa_floor(base, again, draws=200)["floor_nfr"].value > 0.5
    with pytest.raises(ValueError, match="was asked in other words"):
        aa_floor(base, again, again, draws=200)


def test_the_floor_needs_kept_records_of_the_same_items() -> None:
    with pytest.raises(ValueError, match="needs records of suite 'kept'"):
        aa_floor([new(1, 1)], [new(1, 1)])
    with pytest.raises(ValueError, match="no partner among the after records for kept/facts/chat/2"):
        aa_floor([kept(1, 0), kept(2, 0)], [kept(1, 0)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "right", "lost", "moved"), [(40, 0.6, 0.03, 0.1), (96, 0.8, 0.05, 0.1), (96, 0.5, 0.4, 0.5)]
)
def test_intervals_of_corrected_flips_cover(n: int, right: float, lost: float, moved: float) -> None:
    """Without flips that the sample missed they covered .75 to .93 where few flip."""
    rng, runs, hits = np.random.default_rng([47, n]), 300, np.zeros(2)
    for seed in range(runs):
        before = np.where(rng.random(n) < right, 0, rng.integers(1, 4, n))
        after = []
        for _ in range(2):
            elsewhere = (before + rng.integers(0, 2, n)) % 3 + 1  # another wrong option than before
            to = np.where(before == 0, rng.integers(1, 4, n), elsewhere)
            after.append(np.where(rng.random(n) < np.where(before == 0, lost, moved), to, before))
        card = aa_floor(*([kept(i, int(c)) for i, c in enumerate(x)] for x in (before, *after)), 300, seed)
        truth = 4 / 3 * (right * lost - (1 - right) * moved / 2)
        for j, (name, true) in enumerate(
            {"floor_persistence_corrected": truth, "persistence_above_floor": 0.0}.items()
        ):
            found = card[name]
            assert found.low is not None
            assert found.high is not None
            hits[j] += found.low <= true <= found.high
    assert (hits / runs >= 0.93 - np.sqrt(0.05 * 0.95 / runs)).all(), hits / runs

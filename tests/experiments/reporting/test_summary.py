"""Figures as text, and the sentences that follow from intervals."""

from __future__ import annotations

import math

import pytest

from experiments.records import Estimate
from experiments.reporting.summary import OVERLAP, PAIRED, overlap, summary, tied_best
from experiments.reporting.text import format_number, rate_text, with_interval
from tests.helpers.arms import six, synthetic, untrained


def test_the_words_follow_from_intervals() -> None:
    words = summary(six())
    assert words[0] == (
        "control 3e-4 gains most on the new task: +.49 [.41,.57], but it is not distinguishable from any other arm."
    )
    assert words[1] == (
        "control 3e-4 forgets least, by its retention of the kept tasks: 1.00 [.97,1.03]. It is not distinguishable "
        "from control 1e-3, and ahead of the others."
    )
    assert words[2] == (
        "Among the 6 arms whose gain is level with the highest, control 3e-4 keeps most (1.00); below it: "
        "full 1e-3 (.47), full 1e-4 (.88), partial 1e-3 (.88) and partial 3e-4 (.93)."
    )
    assert words[3] == OVERLAP
    assert words[4] == (
        "Retention lies below 1 by more than its interval for full 1e-3, full 1e-4, partial 1e-3 and partial 3e-4."
    )
    assert words[5] == "Not distinguishable from no forgetting: control 1e-3 and control 3e-4."
    assert words[6] == "One seed: another one can change more than these intervals say."
    assert len(words) == 7
    assert summary(six(), seeds=2)[:-1] == words[:-1] == summary(six(), seeds=3)


def test_paired_differences_decide_where_they_are_known() -> None:
    """Overlapping intervals that differ question by question are told apart; others are not, though they lie apart."""
    pair = frozenset(("control 3e-4", "control 1e-3"))
    words = summary(six(), {"gain": frozenset({pair}), "retention": frozenset()})
    assert words[0].endswith("It is ahead of control 1e-3, and not distinguishable from the others.")
    assert words[1].endswith("[.97,1.03], but it is not distinguishable from any other arm.")
    assert "Among the 5 arms whose gain is level with the highest" in words[2]
    assert words[3] == PAIRED
    assert summary(six(), {"gain": frozenset()})[3] == OVERLAP  # too few draws for one of the two figures


def test_the_words_for_a_clear_lead_one_arm_and_no_arm() -> None:
    far = [synthetic("full", 1e-3, 0.8, 0.5), synthetic("control", 1e-3, 0.05, 0.99)]
    assert summary(far)[0].endswith("+.80 [.72,.88], ahead of all other arms.")
    assert summary(far)[1].startswith("control 1e-3 forgets least")
    assert summary(far)[-2] == "No gain outside the interval: control 1e-3; retention without a gain says little."
    assert summary(far[:1])[0] == (
        "full 1e-3 gains +.80 [.72,.88] on the new task at a retention of .50 [.47,.53] on the kept tasks."
    )
    failed = synthetic("full", 1e-3, 0.9, 1.0, status="failed")
    assert summary([failed])[0].startswith("No arm finished")
    assert summary([failed, *far]) == summary(far)


def test_only_arms_whose_intervals_overlap_are_tied() -> None:
    assert overlap(Estimate(1, 0, 2), Estimate(3, 2, 4))
    assert not overlap(Estimate(1, 0, 2), Estimate(3, 2.1, 4))
    assert overlap(Estimate(1), Estimate(9, 8, 10))
    results = six()
    assert [r.label for r in tied_best(results, "kl")] == ["control 0.0003"]
    assert tied_best([untrained()], "kl") == []


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.414, True, "+.41"), (-0.414, False, "-.41"), (0.0471, False, ".05"), (1.0, False, "1.00"),
        (12.34, False, "12.34"), (0.0, True, ".00"), (-0.0001, True, ".00"), (math.nan, True, "n/a"),
        (math.inf, False, "inf"), (-math.inf, False, "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_honest(value: float, signed: bool, text: str) -> None:
    assert format_number(value, signed) == text


def test_intervals_have_as_many_places_as_their_value() -> None:
    assert with_interval(Estimate(0.412, 0.05, -0.004), True) == "+.41 [.05,.00]"
    assert with_interval(Estimate(0.5)) == ".50"
    assert with_interval(None) == "-"
    nats = [with_interval(Estimate(v, v, v), places=(3, 2, 1)) for v in (0.0042, 0.0996, 0.58, 0.996, 8.47)]
    assert nats == [".004 [.004,.004]", ".10 [.10,.10]", ".58 [.58,.58]", "1.0 [1.0,1.0]", "8.5 [8.5,8.5]"]


def test_learning_rates_read_as_they_are_written() -> None:
    assert [rate_text(r) for r in (1e-3, 3e-4, 2.5e-5, 0.01, 1e-10, 0.5)] == [
        "1e-3", "3e-4", "2.5e-5", "0.01", "1e-10", "0.5",
    ]  # fmt: skip

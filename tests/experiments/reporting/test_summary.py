"""The sentences that follow from intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.records import Estimate
from experiments.reporting.summary import OVERLAP, PAIRED, overlap, summary, tied_best, unequal_tokens
from tests.helpers.invented_arms import six, synthetic, untrained


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
        "Retention is below 1 by more than its interval for full 1e-3, full 1e-4, partial 1e-3 and partial 3e-4."
    )
    assert words[5] == "Not distinguishable from no forgetting: control 1e-3 and control 3e-4."
    assert words[6] == "One seed: another one can change more than these intervals say."
    assert len(words) == 7
    assert summary(six(), seeds=2)[:-1] == words[:-1] == summary(six(), seeds=3)


def test_paired_differences_decide_where_they_are_known() -> None:
    """Intervals that overlap but differ question by question count as two results; others do not, even if apart."""
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
    ("tokens", "said"),
    [
        ({"a": 1000.0, "b": 1040.0}, ""),
        ({"a": 1000.0, "b": 2500.0, "c": 1200.0}, "a on 1,000, b on 2,500"),
        ({"a": 1000.0, "untrained": 0.0, "unknown": float("nan")}, ""),
        ({}, ""),
    ],
)
def test_arms_that_trained_on_other_amounts_of_text_are_named(tokens: dict[str, float], said: str) -> None:
    assert said in unequal_tokens(tokens)
    assert bool(unequal_tokens(tokens)) == bool(said)


def test_the_summary_says_that_arms_trained_on_more_text() -> None:
    first, *others = six()
    arms = [replace(first, cost={"tokens": 3e4}), *(replace(arm, cost={"tokens": 1e4}) for arm in others)]
    (added,) = set(summary(arms)) - set(summary([first, *others]))
    assert added.startswith("The arms were not trained on as many tokens: full 1e-4 on 10,000, full 1e-3 on 30,000;")

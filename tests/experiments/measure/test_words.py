"""The answer in words, and which lost answers are shown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from experiments.measure.words import sentence, without_words
from experiments.records import ArmResult, Estimate, Record
from experiments.scorecard import scorecard
from tests.helpers.turned import AFTER, BASE, choice


def result(base: list[Record], after: list[Record]) -> ArmResult:
    return ArmResult("mine", "measured", 0.0, "finished", scorecard=scorecard(base, after, 200))


def test_the_sentence_counts_what_was_lost_and_won() -> None:
    base = [*BASE, choice("wrong", (-2.0, -1.0, -3.0))]
    after = [*AFTER, choice("wrong", (-1.0, -2.0, -3.0))]
    text = sentence(result(base, after), base, after)
    assert text.startswith("mine lost 2 of 20 kept answers that the base had right and won 1: retention .95 [")
    assert text.endswith("], forgetting is not shown (the interval holds 1).")


@pytest.mark.parametrize(
    ("retention", "verdict"),
    [
        (Estimate(0.5, 0.4, 0.6), "it forgot"),
        (Estimate(1.5, 1.4, 1.6), "it knows more than before"),
        (Estimate(0.9, 0.8, 1.0), "forgetting is not shown (the interval holds 1)"),
        (Estimate(math.nan, math.nan, math.nan), "since the base had none right that could be lost"),
    ],
)
def test_the_verdict_is_of_the_interval(retention: Estimate, verdict: str) -> None:
    one = replace(result(BASE, AFTER), scorecard={"retention": retention, "kl": Estimate(0.0, 0.0, 0.0)})
    assert sentence(one, BASE, AFTER).endswith(f", {verdict}; its predictions are exactly the base's.")


def test_tasks_that_fell_are_named_though_others_rose() -> None:
    """One of two tasks: its bound at 97.5 % on each side must be below 1."""
    single = {
        "retention/a": Estimate(0.7, 0.6, 0.8),
        "retention/b": Estimate(0.9, 0.8, 0.99),
        "retention/c": Estimate(1.4),
    }
    card = {"retention": Estimate(1.0, 0.9, 1.1), **single}
    said = sentence(replace(result(BASE, AFTER), scorecard=card), BASE, AFTER)
    assert said.endswith("not shown (the interval holds 1); tasks that fell: a .70 [.60,.80].")


@pytest.mark.parametrize(
    ("retention", "said"),
    [
        (Estimate(0.2, 0.1, 0.4), "; of instructions .20 [.10,.40], it forgot; KL"),
        (Estimate(1.5, 1.1, 1.9), "; of instructions 1.50 [1.10,1.90], it follows more than before; KL"),
        (
            Estimate(0.9, 0.7, 1.1),
            "; of instructions .90 [.70,1.10], forgetting is not shown (the interval holds 1); KL",
        ),
        (Estimate(float("nan")), "(the interval holds 1); KL"),  # the base followed none
    ],
)
def test_instructions_have_a_verdict_of_their_own(retention: Estimate, said: str) -> None:
    card = {"retention": Estimate(1.0, 0.9, 1.1), "retention_instructions": retention, "kl": Estimate(0.1)}
    assert said in sentence(replace(result(BASE, AFTER), scorecard=card), BASE, AFTER)


def test_without_kept_questions_it_says_so() -> None:
    drift = [Record("drift", "base replies", "kl", "0", value=0.5, tokens=4)]
    assert sentence(result(drift, drift), drift, drift).startswith("mine was not asked kept questions; KL .50")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("Paris", "", "mine: 10 of 10 free replies say nothing, or are cut off in their thoughts"),
        ("Paris", "<think>\nThe user asks for", "10 of 10 free replies say nothing"),
        ("Paris", "<think>short</think> Rome", ""),
        ("<think>The", "<think>The", ""),  # the base does so too
    ],
)
def test_replies_that_are_all_thoughts_are_said(before: str, after: str, said: str) -> None:
    """Their answers count as wrong, though the model may know them."""

    def records(reply: str) -> list[Record]:
        return [
            Record("kept", "capitals", "generate", str(i), correct=0, answer="Paris", reply=reply) for i in range(10)
        ]

    found = without_words("mine", records(before), [*records(after), choice("wrong", (-1.0, -2.0, -3.0))])
    assert said in found
    assert bool(said) == bool(found)

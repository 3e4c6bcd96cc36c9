"""The answer in words, and which lost answers are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.evaluation.suite import Suite, SuiteContext
from experiments.evaluation.suites import SUITES
from experiments.measure.words import Lost, lost_answers, question_texts, sentence
from experiments.records import ArmResult, Estimate, Record
from experiments.scorecard import scorecard
from tests.helpers.byte_level import byte_tokenizer

OPTIONS = ("Rome", "Paris", "Oslo")


def choice(item: str, scores: tuple[float, float, float], form: str = "plain") -> Record:
    """The right option is the first."""
    best = max(range(3), key=lambda i: scores[i])
    return Record("kept", "capitals", form, item, correct=int(best == 0), choice=best, answer=0, options=OPTIONS,
                  scores=scores)  # fmt: skip


BASE = [choice(str(i), (-1.0, -2.0, -3.0)) for i in range(20)]
AFTER = [choice("0", (-2.0, -1.0, -3.0)), choice("1", (-5.0, -3.0, -1.0)), *BASE[2:]]


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


def test_the_clearest_loss_comes_first_and_each_question_once() -> None:
    """Leads of the right option: 1 before; then -1 and -4, and -2 for the chat of the first question."""
    base, after = [*BASE, choice("0", (-1.0, -2.0, -3.0), "chat")], [*AFTER, choice("0", (-3.0, -1.0, -2.0), "chat")]
    texts = {("kept", "capitals", "chat", "0"): "in a chat", ("kept", "capitals", "plain", "1"): "in a text"}
    assert lost_answers(base, after, texts) == [
        Lost("capitals", "in a text", "Rome", "Rome", "Oslo", 5.0),
        Lost("capitals", "in a chat", "Rome", "Rome", "Paris", 3.0),
    ]
    assert len(lost_answers(base, after, texts, count=1)) == 1


def test_a_lost_reply_is_shown_as_it_was_written() -> None:
    before = Record("instructions", "json", "generate", "a", correct=1, reply='{"a": 1}', parsed=True)
    after = replace(before, correct=0, reply="Sure!")
    reply = Lost("json", "a", "", '{"a": 1}', "Sure!")
    assert lost_answers([before], [after], {}) == [reply]
    assert lost_answers([*BASE, before], [*AFTER, after], {})[1:2] == [reply]  # in turn with those of choices


def test_every_record_of_questions_has_its_text() -> None:
    tokenizer = byte_tokenizer()
    context = SuiteContext(0, "base")
    items = {"kept": 4, "instructions": 8}
    drawn: list[Suite] = [SUITES[n](SUITES[n].Settings(items=k), context, tokenizer, ()) for n, k in items.items()]
    texts = question_texts(drawn)
    assert len(texts) == 4 * 4 * 3 + 8
    assert {key[2] for key in texts} == {"plain", "chat", "generate"}
    kept = next(key for key in texts if key[:3] == ("kept", "capitals", "chat"))
    assert texts[kept].endswith("?")
    assert texts["kept", "capitals", "plain", kept[3]].endswith("...")

"""Which lost and won answers are shown, and that each has its question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.evaluation.suite import Suite, SuiteContext
from experiments.evaluation.suites import SUITES
from experiments.records import Record
from experiments.reporting.answers import Turned, lost_answers, question_texts, turned_table, won_answers
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.turned import AFTER, BASE, choice


def test_the_clearest_loss_comes_first_and_each_question_once() -> None:
    """Leads of the right option: 1 before; then -1 and -4, and -2 for the chat of the first question."""
    base, after = [*BASE, choice("0", (-1.0, -2.0, -3.0), "chat")], [*AFTER, choice("0", (-3.0, -1.0, -2.0), "chat")]
    texts = {("kept", "capitals", "chat", "0"): "in a chat", ("kept", "capitals", "plain", "1"): "in a text"}
    assert lost_answers(base, after, texts) == [
        Turned("capitals", "in a text", "Rome", "Rome", "Oslo", 5.0),
        Turned("capitals", "in a chat", "Rome", "Rome", "Paris", 3.0),
    ]
    assert len(lost_answers(base, after, texts, count=1)) == 1


def test_a_lost_reply_is_shown_as_it_was_written() -> None:
    before = Record("instructions", "json", "generate", "a", correct=1, reply='{"a": 1}', parsed=True)
    after = replace(before, correct=0, reply="Sure!")
    reply = Turned("json", "a", "", '{"a": 1}', "Sure!")
    assert lost_answers([before], [after], {}) == [reply]
    assert lost_answers([*BASE, before], [*AFTER, after], {})[1:2] == [reply]  # in turn with those of choices


@pytest.mark.parametrize("answer", ["Rome", "[0]"])
def test_the_answer_of_an_lm_eval_task_may_be_a_text_or_a_list(answer: str) -> None:
    base, after = ([replace(one, answer=answer) for one in side] for side in (BASE, AFTER))
    assert lost_answers(base, after, {}) == lost_answers(BASE, AFTER, {})
    assert won_answers(after, base, {}) == won_answers(AFTER, BASE, {})


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


def test_what_is_won_is_the_loss_the_other_way_round() -> None:
    lost, won = lost_answers(BASE, AFTER, {}), won_answers(AFTER, BASE, {})
    assert won == [replace(one, before=one.after, after=one.before) for one in lost]
    assert won_answers(BASE, AFTER, {}) == []


def test_the_table_of_a_run_names_arm_and_kind() -> None:
    table = turned_table(BASE, {"full 1e-3": AFTER, "same 1e-3": BASE}, {})
    assert table is not None
    assert [row[:2] for row in table.rows] == [("full 1e-3", "lost")] * 2
    assert table.rows[0][3:] == ("1", "Rome", "Rome", "Oslo")
    assert turned_table(BASE, {"same 1e-3": BASE}, {}) is None
    many = turned_table(
        BASE, {f"arm {i}": [choice(str(i), (-9.0, -1.0, -3.0)) for i in range(20)] for i in range(5)}, {}
    )
    assert many is not None
    assert len(many.rows) == 5 * 2
    assert "At most 2 lost and 2 won" in many.note

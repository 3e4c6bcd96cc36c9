"""Answers read out of replies, and the records of several samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.data.grader import Contains, Exact
from experiments.data.items import Item, NewTask
from experiments.data.matching import exact_match
from experiments.evaluation import replies
from experiments.evaluation.replies import grading_of, parse_answer, reply_records, said_otherwise, spoken
from tests.helpers.byte_level import byte_tokenizer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("19", "19"),
        ("The answer is -28.", "-28"),
        ("12 - 5 = 1,007.", "1007"),
        ("12-5", "5"),
        ("3 + 4 = \N{MINUS SIGN}7", "-7"),
        ("It is 2.50", "2.50"),
        ("5 - 9", "9"),
        ("1,2", "1.2"),  # a decimal comma: the answers of this form are no lists
        ("It is .5.", ".5"),
        ("It is...5", "5"),
        ("1.5e-3", "1.5e-3"),
        ("10,00,000", "1000000"),  # commas as in India
        ("It is 1/3.", "1/3"),  # not 3
        ("Born on 1/2/2024", "2024"),
        ("12/4 = 3", "3"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_last_number(reply: str, answer: str | None) -> None:
    assert parse_answer(reply, "number") == answer


@pytest.mark.parametrize(("reply", "answer"), [(" apple, pear\n", "apple, pear"), (" \n", None)])
def test_text_answers_are_taken_whole(reply: str, answer: str | None) -> None:
    assert parse_answer(reply, "text") == answer


def test_what_grades_a_task_has_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the grader with its code, and of the bench's: compare says of which tasks it differs."""
    plain = NewTask("t", (Item("q", "1"),), exact_match)
    named = [replace(plain, grader=grader) for grader in (Exact().digest(), Contains().digest())]
    kinds = [plain, *named, replace(plain, verifier="sympy 1.13")]
    found = [grading_of(task) for task in kinds]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    monkeypatch.setattr(replies, "GRADING", 0)
    assert {grading_of(task) for task in kinds}.isdisjoint(found)


def test_samples_of_a_question_are_forms_of_one_item() -> None:
    task = NewTask("t", (Item("q", "1"), Item("r", "2")), exact_match)
    records = list(reply_records("kept", task, ["It is 1", "2", "none", "2"], ("sample 1", "sample 2")))
    assert [(r.item, r.form, r.correct, r.parsed) for r in records] == [
        (task.test[0].id, "sample 1", 1, True),
        (task.test[0].id, "sample 2", 0, True),
        (task.test[1].id, "sample 1", 0, False),
        (task.test[1].id, "sample 2", 1, True),
    ]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>maybe 5</think>\n\n7", "\n\n7"),
        ("maybe 5</think>7", "7"),  # the prompt began the thought
        ("<think>maybe 5", ""),  # cut off in it: no answer
        ("7 <think>", "7 <think>"),
        ("[THINK]maybe 5[/THINK]7", "7"),
        ("<seed:think>maybe 5</seed:think>7", "7"),
        ("<|START_THINKING|>maybe 5", ""),
        ("7", "7"),
    ],
)
def test_thoughts_are_no_answer(reply: str, said: str) -> None:
    assert spoken(reply) == said
    assert spoken(reply, "<think>a</think>7") == reply  # of data that holds thoughts
    task = NewTask("t", (Item("q", "5"),), exact_match)
    (record,) = reply_records("new", task, [reply])
    assert record.reply == reply
    assert not record.correct
    assert record.parsed is bool(said)


def word_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as that of BERT: it lowers case, and writes a space between all words and marks."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "[SEP]", *map(str, range(10)), *".,()京北:", "paris", "q"])}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]")


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [(("北京", "Paris"), "1 of 2 right replies into wrong ones, such as '北京' into '北 京'"), (("Paris", "2"), "")],
)
def test_a_tokenizer_that_changes_right_replies_is_said(answers: tuple[str, ...], wrong: str) -> None:
    """Each reply of the trained model would be wrong, and its gain 0."""
    task = NewTask("t", tuple(Item(f"q{i}", answer) for i, answer in enumerate(answers)), exact_match)
    (said,) = said_otherwise(word_pieces(), task) or [""]
    assert wrong in said
    assert bool(said) == bool(wrong)
    assert not said_otherwise(byte_tokenizer(), task)

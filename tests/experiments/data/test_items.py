"""An answer is right when it is the same text, whatever its case, space and full stop."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from experiments.data.items import Item, NewTask, Scorer
from experiments.data.matching import exact_match
from experiments.evaluation.replies import parse_answer


class TestExactMatch:
    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            ("Paris", "paris"),
            ("  New\tYork. ", "new york"),
            ("1,007", "1007"),
            ("12.0", "12"),
            ("9007199254740993", "9,007,199,254,740,993"),
            ("-0", "0"),
            ("It is in France.\nAnswer: Paris", "Paris"),
            ("**Paris**", "Paris"),
            ("It is in France.\n**Paris**.", "Paris"),
            ("cafe\u0301", "caf\u00e9"),  # a letter and its accent, or both in one
            ("\u22125", "-5"),
            ("-5", "\u22125"),
            ("1/2", "0.5"),
            ("-6/8", "-.75"),
            ("1000000", "10,00,000"),
        ],
    )
    def test_right(self, said: str, answer: str) -> None:
        assert exact_match(said, {"answer": answer}) == 1.0

    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            ("Paris, France", "Paris"),
            ("", "Paris"),
            ("1.007", "1007"),
            ("9007199254740993", "9007199254740992"),
            ("123456789012345678901234567891", "123456789012345678901234567892"),
            ("123", "1,2,3"),  # a list
            ("12,3", "1,23"),
            ("6/8", "3/4"),  # an answer that is a fraction is a text: it may ask for the reduced one
            ("1/0", "0"),
            ("1/3", "0.3333"),
            ("**a** or **b**", "a** or **b"),
            ("5", "-5"),
        ],
    )
    def test_wrong(self, said: str, answer: str) -> None:
        assert exact_match(said, {"answer": answer}) == 0.0


class TestNewTask:
    """A reply that is the answer is right, whatever form the answers have and whatever the verifier says."""

    @pytest.mark.parametrize(
        ("answers", "form"),
        [
            (["7", "-1,007", "2.50"], "number"),
            ([".5", "1e-3", "6.02E+23"], "number"),
            (["3,5", "0,25", "12,75"], "commas"),  # decimal commas
            (["1.234,5", "7"], "commas"),
            (["1,2", "3,4", "10,20,30"], "commas"),  # lists
            (["1, 2", "3, 4"], "text"),
            (["Paris", "7"], "text"),
            (["-1,-2"], "text"),
        ],
    )
    @pytest.mark.parametrize("scorer", [exact_match, lambda answer, entry: 0.0], ids=["exact match", "none"])
    def test_the_answer_itself_is_right(self, answers: list[str], form: str, scorer: Scorer) -> None:
        task = NewTask("task", tuple(Item(f"q{i}", answer) for i, answer in enumerate(answers)), scorer)
        assert task.form == form
        for item, other in zip(task.test, (*task.test[1:], Item("", "8")), strict=True):
            assert task.correct(parse_answer(item.answer, task.form), item)
            assert task.correct(parse_answer(f" {item.answer}\n", task.form), item)
            assert not task.correct(parse_answer(other.answer, task.form), item)

    @pytest.mark.parametrize(
        ("reply", "right"),
        [("It is 3,5.", True), ("1,5 + 2 = 3,5", True), ("35", False), ("3.5", False), ("3,5,1", False), ("", False)],
    )
    def test_a_decimal_comma_in_a_sentence(self, reply: str, right: bool) -> None:
        task = NewTask("task", (Item("q", "3,5"), Item("r", "0,25")), exact_match)
        assert task.correct(parse_answer(reply, task.form), task.test[0]) == right

    @pytest.mark.parametrize(
        ("answer", "reply", "right"),
        [
            ("0.5", "It is .5", True),
            (".5", "0.50", True),
            ("5", ".5", False),
            ("1000", "1e3", True),
            ("3", "1e-3", False),
            ("12", "1,2", False),
            ("100", "1,00", False),
            ("1007", "1,007.0", True),
            ("1234", "1\u202f234", True),  # thin and fixed spaces, apostrophes, LaTeX's commas
            ("1234567", "1\u00a0234\u2009567", True),
            ("1234.5", "1'234.5", True),
            ("1234", r"\boxed{1{,}234}", True),
            ("1234", r"$1\,234$", True),
            ("234", "1\u202f234", False),
            ("11", "5'11\"", True),  # feet and inches
            ("-5", "\u20135", True),
            ("5", "3\u20135", True),  # a range
            ("-5", "3\u20135", False),
            ("0.5", "1/2", True),
            ("2", "1/2", False),
            ("10,00,000", "1000000", True),
            ("\u22125", "x = -5", True),
            ("1000", "It is 1 000.", True),  # as many countries write numbers
            ("0", "It is 1 000.", False),
            ("1234567.5", "1 234 567,5 kg", True),
            ("1234567.5", "1.234.567,5", True),
            ("1234567", "1.234.567", True),
            ("-1234.5", "-1.234,5", True),
            ("1", "1,00", True),
            ("0", "1,00", False),
            ("5", "5,0", True),
            ("0", "5,0", False),
            ("0.125", "0,125", True),
            ("125", "0,125", False),
            ("3", "1,2,3", True),  # lists: the last number, as before
            ("2", "(1,2)", True),
            ("345", "in 2012 345", True),
            ("300", "100 200 7 300", True),
            ("7", "3,5 7", True),
            ("10", "3 + 2 = 5, 10", True),
            ("1.5", "version 1.5", True),
        ],
    )
    def test_a_number_is_read_whole(self, answer: str, reply: str, right: bool) -> None:
        task = NewTask("task", (Item("q", answer),), exact_match)
        assert task.correct(parse_answer(reply, task.form), task.test[0]) == right

    def test_a_decimal_comma_is_not_between_thousands(self) -> None:
        task = NewTask("task", (Item("q", "1,234"), Item("r", "0,5")), exact_match)
        assert not task.correct(parse_answer("1234", task.form), task.test[0])

    def test_a_worked_reply_ends_with_its_answer(self) -> None:
        item = Item("q", "b a", solution="Sort them.")
        task = NewTask("task", (item,), lambda answer, entry: float(answer == entry["answer"]))
        assert task.correct(parse_answer(item.reply, task.form), item)
        assert not task.correct(parse_answer("Sort them.\nAnswer: a b", task.form), item)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (OSError(errno.EMFILE, "Too many open files", "words.txt"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (MemoryError(), False),
        (ValueError("not a list: No space left on device"), True),  # a reply may say so
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), True),
        (ZeroDivisionError(), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_fault_of_the_machine_makes_no_reply_wrong(error: Exception, wrong: bool) -> None:
    def raises(answer: str, entry: dict[str, Any]) -> float:
        raise error

    task = NewTask("t", (Item("q", "a"),), raises)
    if wrong:
        assert not task.correct("b", task.test[0])
    else:
        with pytest.raises(type(error), match=str(error.args[1]) if error.args else "^$"):
            task.correct("b", task.test[0])

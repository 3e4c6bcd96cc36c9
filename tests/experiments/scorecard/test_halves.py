"""The split of items into a half that chooses and a half that is reported."""

from __future__ import annotations

from experiments.records import Record
from experiments.scorecard.halves import even


def record(item: int, form: str = "chat", correct: int = 1) -> Record:
    return Record("kept", "capitals", form, str(item), correct=correct)


def test_all_forms_of_a_question_are_in_one_half_whatever_the_answer() -> None:
    for item in range(40):
        assert len({even(record(item, form, correct)) for form in ("chat", "plain") for correct in (0, 1)}) == 1


def test_halves_are_halves() -> None:
    assert 450 < sum(even(record(item)) for item in range(1000)) < 550

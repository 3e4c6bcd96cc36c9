"""Options of multiple choice, as tables have them, and the numbers of replies."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.grader import last_number
from experiments.data.items import Item
from tests.helpers.question_files import write


@pytest.mark.parametrize(
    ("cell", "answer", "right"),
    [
        (["Lyon", "Paris"], "Paris", "Paris"),
        (["Lyon", "Paris"], "B", "Paris"),
        (["Lyon", "Paris"], 1, "Paris"),
        (["3", "1"], 1, "1"),  # a number from 0: the second
        (["3", "1"], "3", "3"),
        (["1", "0"], 0, "1"),
        ([3, 1], 1, "1"),  # options that are numbers
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, "2", "Paris"),
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, 1, "Lyon"),  # its label, not its number from 0
        ({"text": ["Lyon", "Paris"], "label": [1, 2]}, 2, "Paris"),
        ({"text": ["Lyon", "Paris"], "label": ["A", "B"]}, 1, "Paris"),
        ('["Lyon", "Paris"]', "B", "Paris"),  # JSON in a cell of CSV
        (["Lyon", "Paris"], "C", r"the answer 'C' is none of the options"),
        (["Lyon"], "Lyon", r"two or more different options"),
        (["Lyon", "Lyon"], "Lyon", r"two or more different options"),
        ("Lyon", "Lyon", r"a list of texts"),
    ],
)
def test_options_of_a_row(cell: Any, answer: Any, right: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "options": cell, "answer": answer}])
    source = LocalFile(path=str(path), grader="choice")
    if right in ("Lyon", "Paris", "1", "3", "0"):
        (item,) = source.examples
        assert isinstance(item, Item)
        assert item.answer == right
    else:
        with pytest.raises(ConfigError, match=rf"line 1: .*{right}"):
            source.examples  # noqa: B018


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("\uff14\uff12", 42), ("\u0664\u0662", 42), ("it is 10,00,000", 1_000_000), ("1'234'567", 1_234_567),
        ("1\u202f234", 1234), ("\u22122", -2), ("1.5 or 3/2", Decimal("1.5")), ("1e3", 1000),
        ("1 1/2", Decimal("0.5")), ("1 234", 1234), ("3,5", Decimal("3.5")),  # as the docstring of Numeric says
    ],
)  # fmt: skip
def test_spellings_of_numbers(said: str, value: Any) -> None:
    assert last_number(said) == value


def test_a_sign_for_a_half_is_no_number() -> None:
    assert last_number("\u00bd") is None

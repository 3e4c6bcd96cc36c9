"""Cells become text as a reader would write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from experiments.data.cells import EMPTY_WORDS, BadRow, cell_text, empty_word


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("a", "a"),
        (7, "7"),
        (Decimal("1.50"), "1.50"),
        (True, "True"),
        (3.0, "3"),
        (-3.0, "-3"),
        (2.5, "2.5"),
        ("3.0", "3.0"),
        (1e22, "1e+22"),
    ],
)
def test_text(cell: Any, text: str) -> None:
    assert cell_text(cell, "c", "here") == text


@pytest.mark.parametrize("cell", [[1], {"a": 1}, b"a", float("nan"), float("inf"), "\udc80"])
def test_what_is_no_text(cell: Any) -> None:
    with pytest.raises(BadRow, match=r"here: .*'c'"):
        cell_text(cell, "c", "here")


def test_words_for_an_empty_cell_are_those_that_programs_write() -> None:
    assert all(empty_word(f" {word}\n") == word for word in EMPTY_WORDS)
    assert not any(map(empty_word, ["none", "na", "null and void", "", "0", None, float("nan"), 3, ["NULL"]]))

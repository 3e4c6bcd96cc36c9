"""Cells become text as a reader would write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow
import pytest

from experiments.data.cells import EMPTY_WORDS, BadRow, as_stored, cell_text, empty_word, inexact


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
    assert all(empty_word(f" {word}\n") == word for word in {*EMPTY_WORDS, "<noinput>", "\\N"})
    assert not any(map(empty_word, ["none", "na", "null and void", "", "0", None, float("nan"), 3, ["NULL"]]))


@pytest.mark.parametrize("wide", [0.1, [0.1, 3.0], {"text": [0.1, 2.5], "label": ["A", "B"]}, [{"n": 0.1}], "0.1"])
def test_numbers_inside_of_a_cell_are_the_decimals_that_were_meant(wide: Any) -> None:
    """Options of multiple choice are lists: .1 of a narrow type would be the option 0.10000000149011612."""
    dtype = narrowed(pyarrow.array([wide]).type)
    (cell,) = pyarrow.array([wide]).cast(dtype).to_pylist()
    assert as_stored(cell, dtype) == wide
    assert as_stored(cell, None) == cell


def narrowed(dtype: Any) -> Any:
    """Return the type with single precision in place of double."""
    if pyarrow.types.is_list(dtype):
        return pyarrow.list_(narrowed(dtype.value_type))
    if pyarrow.types.is_struct(dtype):
        return pyarrow.struct([(field.name, narrowed(field.type)) for field in dtype])
    return pyarrow.float32() if dtype == pyarrow.float64() else dtype


def test_floats_that_may_have_lost_digits() -> None:
    """2^53 is the first whole number whose successor is no float."""
    edge = float(2**53)
    assert float(2**53 + 1) == edge
    for cell in (edge, -edge, 1e300, [1, edge], {"a": [{"b": edge}]}):
        assert inexact(cell) in (edge, -edge, 1e300)
    assert not any(map(inexact, [np.nextafter(edge, 0), 2**60, 2.5, "1e300", None, float("inf"), [2**60, {"a": 1.5}]]))

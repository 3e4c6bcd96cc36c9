"""Read the cells of a table as text."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np

from experiments.common.errors import ConfigError

EXACT = 2.0**53  # above it not every whole number is a float
NARROW = {"float": np.float32, "float32": np.float32, "halffloat": np.float16, "float16": np.float16}
EMPTY_WORDS = frozenset(  # as pandas, R, Excel and databases write them; "none" and "na" are words
    ("NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT", "\\N")
)
PLAIN = (str, bool, int, float, Decimal)  # types whose text is what a reader would write


class BadRow(ConfigError):
    """A row whose cells cannot be used. It is passed over with skip_bad_rows."""


def cell_text(cell: Any, column: str, place: str) -> str:
    """Return the text of a cell; nothing for an empty one. Raises BadRow for what is no text.

    A whole number is written as one: tables in which a cell is empty often keep 3 as 3.0 (pandas does).
    """
    if cell is None:
        return ""
    if not isinstance(cell, PLAIN):
        raise BadRow(f"{place}: column {column!r} holds a {type(cell).__name__}, which is no text")
    if isinstance(cell, float) and not math.isfinite(cell):
        raise BadRow(f"{place}: column {column!r} is empty" if math.isnan(cell) else f"{place}: {column!r} is {cell}")
    number = int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < EXACT else cell
    return _whole(str(number), column, place)


def as_stored(cell: Any, dtype: str) -> Any:
    """Return a number of a narrow type as the shortest decimal that gives it: .1 of type float is .10000000149 wide."""
    narrow = NARROW.get(dtype)
    return float(str(narrow(cell))) if narrow and isinstance(cell, float) else cell


def empty_word(cell: Any) -> str:
    """Return the word of a cell that says "no value" in the files of many programs; nothing for any other cell."""
    return cell.strip() if isinstance(cell, str) and cell.strip() in EMPTY_WORDS else ""


def blank(text: str) -> bool:
    """Whether a text has nothing to see: spaces, and characters without a shape, such as U+200B or U+FEFF."""
    return not (text[:1].isalnum() or any(char.isprintable() and not char.isspace() for char in text))


def _whole(text: str, column: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadRow(f"{place}: column {column!r} holds half of a character ({half} of a surrogate pair)") from None
    return text

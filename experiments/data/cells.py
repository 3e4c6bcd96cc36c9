"""Read the cells of a table as text."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from experiments.common.errors import ConfigError

EXACT = 2.0**53  # above it not every whole number is a float
NARROW = {"float": np.float32, "halffloat": np.float16}  # by Arrow's name
EMPTY_WORDS = frozenset((  # as pandas, R, Excel, databases and Alpaca write them; "none" and "na" are words
    "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT", "\\N",
    "<noinput>",
))  # fmt: skip
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
        hint = ": write dates as texts; source file reads those of JSON lines as they are" if _is_time(cell) else ""
        raise BadRow(f"{place}: column {column!r} holds a {type(cell).__name__}, which is no text{hint}")
    if isinstance(cell, float) and not math.isfinite(cell):
        raise BadRow(f"{place}: column {column!r} is empty" if math.isnan(cell) else f"{place}: {column!r} is {cell}")
    return whole(written(cell), column, place)


def _is_time(cell: Any) -> bool:
    """Whether a cell is a date or a time, which pyarrow makes of texts like 2020-01-01 in JSON lines and CSV."""
    return isinstance(cell, datetime.date | datetime.time | datetime.timedelta)


def written(value: Any) -> str:
    """Return the text of a value; of 3.0 that is 3."""
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value)


def as_stored(cell: Any, dtype: Any) -> Any:
    """Return a number of a narrow type as the shortest decimal that gives it: .1 of type float is .10000000149 wide.

    dtype: Arrow's type of the cell. Numbers inside of a cell are treated in the same way.
    """
    if isinstance(cell, list) and hasattr(dtype, "value_type"):
        return [as_stored(one, dtype.value_type) for one in cell]
    if isinstance(cell, Mapping) and hasattr(dtype, "get_field_index"):
        return {name: as_stored(one, dtype.field(name).type) for name, one in cell.items()}
    narrow = NARROW.get(str(dtype)) if isinstance(cell, float) else None
    return float(str(narrow(cell))) if narrow else cell


def inexact(cell: Any) -> float | None:
    """Return a float in a cell that is above 2^53, so that digits of a whole number may be lost; None without one."""
    if isinstance(cell, list | Mapping):
        inside = cell.values() if isinstance(cell, Mapping) else cell
        return next((found for one in inside if (found := inexact(one)) is not None), None)
    return cell if isinstance(cell, float) and EXACT <= abs(cell) < math.inf else None


def empty_word(cell: Any) -> str:
    """Return the word of a cell that says "no value" in the files of many programs; nothing for any other cell."""
    return cell.strip() if isinstance(cell, str) and cell.strip() in EMPTY_WORDS else ""


def blank(text: str) -> bool:
    """Whether a text has nothing to see: spaces, and characters without a shape, such as U+200B or U+FEFF."""
    return not (text[:1].isalnum() or any(char.isprintable() and not char.isspace() for char in text))


def whole(text: str, column: str, place: str) -> str:
    """Return a text. Raises BadRow if it holds half of a character, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadRow(f"{place}: column {column!r} holds half of a character ({half} of a surrogate pair)") from None
    return text


def whole_texts(value: Any, column: str, place: str) -> Any:
    """Return a value. Raises BadRow, as `whole` does, for the texts inside of it."""
    if isinstance(value, str):
        whole(value, column, place)
    elif isinstance(value, Mapping | list | tuple):
        for one in (*value, *value.values()) if isinstance(value, Mapping) else value:
            whole_texts(one, column, place)
    return value

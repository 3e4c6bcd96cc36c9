"""Map the columns of a table to question, answer or text; find the rows that cannot be used."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field, field_validator

from experiments.common.errors import ConfigError
from experiments.common.section import later_field, nearest
from experiments.data.items import Example, Item, Text
from experiments.data.tested import Measured

PLAIN = (str, bool, int, float, Decimal)  # types whose text is what a reader would write


class BadRow(ConfigError):
    """A row whose cells cannot be used. It is passed over with skip_bad_rows."""


class Columns(Measured):
    """A source with a table. With `text`, each row is a document; else it is a question and its answer.

    Each of these fields names a column, or is a text with columns in braces: `question: "{instruction}\\n{input}"`. An
    empty cell leaves such a place empty.
    """

    question: str = Field("question", description="column of the question, or a text with {columns}")
    answer: str = Field("answer", description="column of the final answer, scored by exact match or by a grader")
    solution: str | None = Field(None, description="column of worked steps, which are trained on before the answer")
    text: str | None = Field(None, description="column of a document; question and answer are not read then")
    skip_bad_rows: bool = later_field(
        False, description="pass over rows with cells that cannot be used, and count them"
    )

    @field_validator("question", "answer", "solution", "text")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None and "{" in value:
            try:
                parts = list(string.Formatter().parse(value))
            except ValueError as error:
                raise ValueError(f"{value!r} is no text with columns in braces ({error})") from None
            if any(name == "" or form or turn for _, name, form, turn in parts):
                raise ValueError(f"{value!r} has braces with more or less than the name of a column")
        return value

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        fields = [self.text] if self.text else [self.question, self.answer, self.solution]
        graded = self.grader.reads if self.grader and not self.text else ()
        return list(dict.fromkeys([*(name for field in fields if field for name in _names(field)), *graded]))

    def example(self, row: Mapping[str, Any], place: str) -> Example:
        """Convert one row. place: where it is, for errors. Raises ConfigError; BadRow for an unusable cell."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise ConfigError(
                f"{place} has no column {missing[0]!r}: {nearest(missing[0], map(str, row))}. Name the columns with "
                "question: and answer:, or the one of a document with text:"
            )
        if self.text:
            return Text(_filled(self.text, row, place))
        solution = _filled(self.solution, row, place) if self.solution else ""
        answer, metadata = _filled(self.answer, row, place), dict[str, Any]()
        if self.grader:
            try:
                answer, metadata = self.grader.values(row, answer, row.get(self.answer))
            except ValueError as error:
                raise BadRow(f"{place}: {error}") from None
        return Item(_filled(self.question, row, place), answer, metadata, solution)

    def usable(self, rows: Iterable[Mapping[str, Any]], name: str) -> tuple[dict[int, Example], list[str]]:
        """Convert rows that are usable, by their number from 1. Returns them, and the faults of those passed over.

        Raises BadRow for the first of these, unless skip_bad_rows is set.
        """
        found, faults = {}, []
        for number, row in enumerate(rows, start=1):
            try:
                found[number] = self.example(row, f"{name}, row {number}")
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise BadRow(f"{error}. To pass over such rows: skip_bad_rows: true") from None
                faults.append(str(error))
        return found, faults


def passed_over(faults: list[str]) -> list[str]:
    """Say how many rows were passed over, and why the first was."""
    if not faults:
        return []
    return [f"{len(faults)} row{'s' * (len(faults) > 1)} passed over ({faults[0]})"]


def _names(field: str) -> list[str]:
    """Return the columns of a field: those in its braces, or itself."""
    return [name for _, name, _, _ in string.Formatter().parse(field) if name] if "{" in field else [field]


def _filled(field: str, row: Mapping[str, Any], place: str) -> str:
    """Return a field's text for a row. Raises BadRow if a cell is no text, or if nothing is left."""
    texts = {name: _text(row[name], name, place) for name in _names(field)}
    value = field.format(**texts).strip() if "{" in field else texts[field]
    if not value.strip():
        what = f"column {field!r} is" if field in texts else f"columns {', '.join(texts)} are"
        raise BadRow(f"{place}: {what} empty")
    return value


def _text(cell: Any, column: str, place: str) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, PLAIN):
        raise BadRow(f"{place}: column {column!r} holds a {type(cell).__name__}, which is no text")
    if isinstance(cell, float) and not math.isfinite(cell):
        raise BadRow(f"{place}: column {column!r} is empty" if math.isnan(cell) else f"{place}: {column!r} is {cell}")
    text = str(cell)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadRow(f"{place}: column {column!r} holds half of a character ({half} of a surrogate pair)") from None
    return text

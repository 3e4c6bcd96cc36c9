"""Map the columns of a table to examples, by its shape or as a config names them; find the rows that cannot be used."""

from __future__ import annotations

import dataclasses
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from experiments.common.errors import ConfigError
from experiments.common.section import later_field, nearest
from experiments.data.cells import BadRow, blank, cell_text, whole_texts
from experiments.data.items import Example, Item, Text
from experiments.data.shapes import MORE, Shape, conversation, recognised
from experiments.data.stored import Found, packed
from experiments.data.tables import Part, Row, parts
from experiments.data.tested import Measured
from experiments.data.unread import LEFT, SHAPE, said_escapes, said_unread, unread_systems, words_of

WRITTEN = ("question", "answer", "solution", "text", "separator")  # fields that may hold line ends
NAMED = ("question", "answer", "solution", "text", "messages")  # fields that name columns
PART = 1000  # rows of a large table that a process converts at a time


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a large table. name: of the table, for errors. columns: of its first row, which decides."""

    part: Part
    name: str
    columns: Sequence[str]


class Usable(NamedTuple):
    """Examples by the number of their row, from 1; faults of the rows passed over; words as in `unread`."""

    examples: dict[int, Example]
    faults: list[str]
    words: Counter[str]


class Columns(Measured):
    """A source with a table, whose columns say what a row is (`shapes.SHAPES`), unless fields name the columns.

    With `text`, each row is a document; with `messages` a conversation; else it is a question and its answer. Each of
    the other fields names a column, or is a text with columns in braces: `question: "{instruction}\\n{input}"`. An
    empty cell leaves such a place empty.
    """

    question: str = Field("question", description="column of the question, or a text with {columns}")
    answer: str = Field("answer", description="column of the final answer, scored by exact match or by a grader")
    solution: str | None = Field(None, description="column of worked steps, which are trained on before the answer")
    text: str | None = Field(None, description="column of a document; question and answer are not read then")
    messages: str | None = later_field(
        None, description="column of a conversation: role and content, or from and value"
    )
    skip_bad_rows: bool = later_field(
        False, description="pass over rows with cells that cannot be used, or that the template refuses; count them"
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
    def skips(self) -> bool:
        return self.skip_bad_rows

    @property
    def names_columns(self) -> bool:
        """Whether the config names columns. That of a run's folder has all fields, so a default names none."""
        return any(getattr(self, name) != Columns.model_fields[name].default for name in NAMED)

    @property
    def named(self) -> bool:
        """Whether the columns are those of the fields; else the shape of the table is recognised."""
        return self.names_columns

    @property
    def escapes(self) -> list[str]:
        """Say which texts of the config may be written with other quotes than they need."""
        return said_escapes({name: getattr(self, name, None) for name in WRITTEN})

    def unread(self, columns: Iterable[str], place: str) -> list[str]:
        """Say which columns of a table are not read, if the config names none: one may belong to the question."""
        there = list(columns)
        return said_unread(self.read_as(self.shape(there, place), there)) if there else []

    def read_as(self, shape: Shape, columns: Iterable[str]) -> list[str]:
        """Name the shape of a row, and its columns that nothing reads, for `said_unread`."""
        return [] if self.names_columns else [SHAPE + shape.name, *(LEFT + name for name in shape.unread(columns))]

    def shape(self, columns: Iterable[str], place: str) -> Shape:
        """Return how rows of a table with these columns are read. Raises ConfigError if a named one is missing."""
        there = list(columns)
        found = self._plain_shape(there, place)
        if self.grader is None or self.text:
            return found
        _check(self.grader.reads, there, place, "Name those of the grader in grader:")
        return self._graded(found)

    def _plain_shape(self, columns: Iterable[str], place: str) -> Shape:
        there = list(columns)
        if not self.named:
            return recognised(there, place)
        fields = (
            [self.messages or self.text] if self.messages or self.text else [self.question, self.answer, self.solution]
        )
        needed = tuple(dict.fromkeys(name for field in fields if field for name in _names(field)))
        _check(
            needed,
            there,
            place,
            "Name the columns with question: and answer:, that of a conversation with messages:, or that of a document "
            "with text:",
        )
        if self.messages:
            return Shape("messages", needed, conversation(self.messages), MORE)
        return Shape("named columns", needed, self._example)

    def _example(self, row: Mapping[str, Any], place: str) -> Example:
        if self.text:
            return Text(_filled(self.text, row, place))
        solution = _filled(self.solution, row, place) if self.solution else ""
        return Item(_filled(self.question, row, place), _filled(self.answer, row, place), solution=solution)

    def _graded(self, shape: Shape) -> Shape:
        """Add what the grader reads of a row to each item."""
        column = self._answer_column(shape)

        def read(row: Mapping[str, Any], place: str) -> Example:
            item = shape.read(row, place)
            if not isinstance(item, Item) or self.grader is None:
                return item
            try:
                answer, metadata = self.grader.values(row, item.answer, row.get(column, item.answer))
            except ValueError as error:
                raise BadRow(f"{place}: {error}") from None
            for name, value in metadata.items():
                whole_texts(value, name, place)
            return dataclasses.replace(item, answer=answer, metadata={**item.metadata, **metadata})

        reads = self.grader.reads if self.grader else ()
        return Shape(shape.name, shape.columns, read, (*shape.also, *reads))

    def _answer_column(self, shape: Shape) -> str:
        """Return the column whose cell is the answer; for a conversation that of its messages, for a text nothing."""
        if not self.named or self.messages:
            return shape.columns[-1]
        return next((name for name in _names(self.answer) if self.answer in (name, f"{{{name}}}")), "")

    def usable(self, rows: Iterable[Row], name: str, columns: Sequence[str] = ()) -> Usable:
        """Convert rows that are usable.

        The first row decides on the shape, unless `columns` are given. Raises BadRow for the first fault, unless
        skip_bad_rows is set.
        """
        found = Usable({}, [], Counter())
        shape = self.shape(columns, name) if columns else None
        kinds = set[tuple[str, ...]]()  # of rows, by their columns: rows of JSON need not have the same
        for number, (where, row) in enumerate(rows, start=1):
            try:
                if isinstance(row, BadRow):
                    raise row
                shape = shape or self.shape(row, f"{name}, {where}")
                found.examples[number] = shape.example(row, f"{name}, {where}")
                found.words.update([*words_of(shape, row), *unread_systems(row, found.examples[number])])
                if (kind := tuple(row)) not in kinds:
                    kinds.add(kind)
                    found.words.update(self.read_as(shape, kind))
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise BadRow(f"{error}. To pass over such rows: skip_bad_rows: true") from None
                found.faults.append(str(error))
        return found

    def packed_part(self, chunk: Chunk) -> Found:
        """Convert a part of a large table. Raises BadRow, and TypeError for examples that cannot be stored."""
        found = self.usable(chunk.part.rows(), chunk.name, chunk.columns)
        return Found([packed(example) for example in found.examples.values()], found.faults, found.words)

    def chunks(self, file: Path) -> Iterator[Chunk]:
        """Yield a file in parts, all read by its first row. Raises ConfigError for a shape that is not known."""
        first: Mapping[str, Any] = {}
        for part in parts(file, PART):
            if not first:
                where, first = next(((w, row) for w, row in part.rows() if not isinstance(row, BadRow)), ("", {}))
                if first:
                    self.shape(first, f"{file}, {where}")
            yield Chunk(part, str(file), list(first))


def _check(needed: Iterable[str], there: list[str], place: str, advice: str) -> None:
    """Raise ConfigError for a column that is not there."""
    for name in needed:
        if name not in there:
            raise ConfigError(f"{place} has no column {name!r}: {nearest(name, map(str, there))}. {advice}")


def _names(field: str) -> list[str]:
    """Return the columns of a field: those in its braces, or itself."""
    return [name for _, name, _, _ in string.Formatter().parse(field) if name] if "{" in field else [field]


def _filled(field: str, row: Mapping[str, Any], place: str) -> str:
    """Return a field's text for a row. Raises BadRow if a cell is no text, or if nothing is left."""
    texts = {name: cell_text(row[name], name, place) for name in _names(field)}
    value = field.format(**texts).strip() if "{" in field else texts[field]
    if blank(value):
        what = f"column {field!r} is" if field in texts else f"columns {', '.join(texts)} are"
        raise BadRow(f"{place}: {what} empty")
    return value

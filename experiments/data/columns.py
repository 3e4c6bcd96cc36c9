"""Which columns of a table are the question, the answer or the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.section import nearest
from experiments.data.items import Example, Item, Text
from experiments.data.source import Source


class Columns(Source):
    """A source with a table: `text` names the column of a document; else each row is a question and its answer."""

    question: str = Field("question", description="column of the question")
    answer: str = Field("answer", description="column of the final answer, which is measured by exact match")
    solution: str | None = Field(None, description="column of worked steps, which training writes before the answer")
    text: str | None = Field(None, description="column of a document; then the columns of a chat are not read")

    def example(self, row: Mapping[str, Any], place: str) -> Example:
        """One row. place: where it stands, for the error. Raises ConfigError for a column that is not there."""
        wanted = [self.text] if self.text else [self.question, self.answer, *([self.solution] if self.solution else [])]
        missing = [name for name in wanted if name not in row]
        if missing:
            raise ConfigError(
                f"{place} has no column {missing[0]!r}: {nearest(missing[0], map(str, row))}. Name the columns with "
                "question: and answer:, or the one of a document with text:"
            )
        empty = [name for name in wanted if row[name] is None or not str(row[name]).strip()]
        if empty:
            raise ConfigError(f"{place}: column {empty[0]!r} is empty")
        values = [str(row[name]) for name in wanted]
        return Text(values[0]) if self.text else Item(values[0], values[1], solution="".join(values[2:]))

    def table(self, rows: Iterable[Mapping[str, Any]], name: str) -> list[Example]:
        return [self.example(row, f"{name}, row {number}") for number, row in enumerate(rows, start=1)]

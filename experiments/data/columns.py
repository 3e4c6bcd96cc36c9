"""Map the columns of a table to question, answer or text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.section import nearest
from experiments.data.items import Example, Item, Text
from experiments.data.source import Source


class Columns(Source):
    """A source with a table. With `text`, each row is a document; else it is a question and its answer."""

    question: str = Field("question", description="column of the question")
    answer: str = Field("answer", description="column of the final answer, which is scored by exact match")
    solution: str | None = Field(None, description="column of worked steps, which are trained on before the answer")
    text: str | None = Field(None, description="column of a document; question and answer are not read then")

    def example(self, row: Mapping[str, Any], place: str) -> Example:
        """Convert one row. place: where it is, for errors. Raises ConfigError for a missing or empty column."""
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

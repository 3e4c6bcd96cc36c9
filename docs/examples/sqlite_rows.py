"""A source of your own: questions and answers from an SQLite query."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path
from typing import Literal

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.data.columns import Columns
from experiments.data.items import Example
from experiments.data.source import Finite
from experiments.data.unread import passed_over


class SqliteRows(Columns, Finite):
    """The rows of a query. Its columns are named as in source `file`: question, answer, solution, or text."""

    source: Literal["sqlite"] = "sqlite"
    path: str = Field(description="an SQLite database")
    query: str = Field(description="a select whose columns are named as in source file")

    @property
    def label(self) -> str:
        return Path(self.path).stem

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(self._found[0].values())

    @property
    def notes(self) -> list[str]:
        return passed_over(self._found[1])

    @functools.cached_property
    def _found(self) -> tuple[dict[int, Example], list[str]]:
        """The examples by number of the row, and why the other rows cannot be used."""
        if not Path(self.path).is_file():
            raise ConfigError(f"source sqlite: {self.path} does not exist (looked in {Path.cwd()})")
        connection = sqlite3.connect(self.path)
        connection.row_factory = sqlite3.Row
        try:
            rows = [(f"row {i}", dict(row)) for i, row in enumerate(connection.execute(self.query), start=1)]
        except sqlite3.Error as error:
            raise ConfigError(f"source sqlite: {self.query!r} failed on {self.path}: {error}") from error
        finally:
            connection.close()
        return self.usable(rows, self.path)

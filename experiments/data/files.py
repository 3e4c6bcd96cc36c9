"""Local files: JSON lines, Parquet, or plain text."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.files import json_lines
from experiments.data.columns import Columns
from experiments.data.items import Example, Text
from experiments.data.source import Finite, distinct

TABLES = (".jsonl", ".json", ".parquet")
TEXTS = (".txt", ".md", ".rst", ".py")


class LocalFile(Columns, Finite):
    """A file, or all files of one folder: `.jsonl`, `.json` (lines or one list), `.parquet`, or text.

    A text file is split into documents at `separator`; if that is empty, each file is a document.
    """

    source: Literal["file"] = "file"
    path: str = Field(description="a file, or a folder of files")
    separator: str = Field("\n\n", description="text between the documents of a text file")

    @property
    def label(self) -> str:
        return Path(self.path).stem

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        found = distinct([example for file in self._files() for example in self._read(file)])
        if not found:
            raise ConfigError(f"data file {self.path} is empty: there is nothing to train on")
        return found

    def _files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        if not path.exists():
            raise ConfigError(f"data file {self.path} does not exist (looked in {Path.cwd()})")
        files = sorted(p for p in path.rglob("*") if p.suffix in TABLES + TEXTS) if path.is_dir() else [path]
        if not files or files[0].suffix not in TABLES + TEXTS:
            raise ConfigError(f"data file {self.path}: no file of a known kind; known: {', '.join(TABLES + TEXTS)}")
        return files

    def _read(self, file: Path) -> Iterable[Example]:
        try:
            if file.suffix in TEXTS:
                return self._documents(file)
            return self.table(_parquet(file) if file.suffix == ".parquet" else _json(file), str(file))
        except UnicodeDecodeError as error:
            raise ConfigError(f"data file {file} is not UTF-8 text: {error}") from error

    def _documents(self, file: Path) -> list[Example]:
        if self.text or {"question", "answer", "solution"} & self.model_fields_set:
            raise ConfigError(
                f"data file {file} is plain text and has no columns: leave out question, answer and text, or give a "
                f"table ({', '.join(TABLES)})"
            )
        text = file.read_text(encoding="utf-8")
        parts = text.split(self.separator) if self.separator else [text]
        return [Text(part.strip("\n")) for part in parts if part.strip()]


def _json(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json" and text.lstrip().startswith("["):
        return _parsed(text, f"data file {file}", list)
    return [_parsed(line, f"data file {file}, line {n}", dict) for n, line in json_lines(text)]


def _parsed(text: str, place: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error
    rows = value if kind is list else [value]
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{place} must hold an object with named columns, but holds {type(rows[0]).__name__}")
    return value


def _parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"data file {file} is not Parquet: {error}") from error

"""Read the rows of a table one after the other: JSON lines, JSON, CSV, Parquet, Arrow; compressed files too."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from experiments.common.errors import ConfigError
from experiments.common.files import parse_json
from experiments.data.cells import BadRow, as_stored
from experiments.data.columnar import BATCHES, check_names

MARK = "\ufeff"  # the byte order mark, also in front of a table that `cat` joined to another one
BOM = MARK.encode()
Row = tuple[str, Mapping[str, Any] | BadRow]  # where it is in the file, and its cells or why they cannot be read


def rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a table. The file is not held in memory, unless it is one JSON list.

    Raises ConfigError for a file that is damaged. A line that cannot be read is yielded as BadRow.
    """
    with _faults(file):
        yield from READERS[kind(file)](file)


@dataclass(frozen=True)
class Part:
    """Some rows of a table, which any process can read. first: number of the first one.

    lines: JSON lines as they are stored. batch: of Arrow or Parquet, in columns. read: rows that had to be read to
    divide the table, of all other kinds.
    """

    file: Path
    first: int = 1
    lines: Sequence[bytes] = ()
    batch: Any = None
    read: Sequence[Row] = ()

    def rows(self) -> Iterator[Row]:
        """Yield the rows, as `rows` does."""
        yield from self.read
        yield from _numbered(self.lines, self.first, self.file)
        if self.batch is not None:
            yield from _batch_rows([self.batch], self.first)


def parts(file: Path, size: int) -> Iterator[Part]:
    """Divide a table into parts of `size` rows. JSON lines and cells of Arrow and Parquet are not read for that.

    Raises ConfigError as `rows`.
    """
    with _faults(file):
        if kind(file) == ".jsonl":
            yield from _parts_of_lines(file, size)
        elif kind(file) in BATCHES:
            yield from _parts_of_batches(file, size)
        else:
            rest = rows(file)
            while some := list(itertools.islice(rest, size)):
                yield Part(file, read=some)


def _parts_of_lines(file: Path, size: int) -> Iterator[Part]:
    first = 1
    with opened(file) as stream:
        while lines := list(itertools.islice(stream, size)):
            yield Part(file, first, lines)
            first += len(lines)


def _parts_of_batches(file: Path, size: int) -> Iterator[Part]:
    first = 1
    for batch in BATCHES[kind(file)](file):
        for start in range(0, len(batch), size):
            some = batch.slice(start, size)
            yield Part(file, first, batch=some)
            first += len(some)


@contextmanager
def _faults(file: Path) -> Iterator[None]:
    """Raise ConfigError in place of the errors of a damaged file."""
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"data file {file} cannot be read: {error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"data file {file} is not UTF-8 text of a table: {error}") from error


def kind(file: Path) -> str:
    """Return the ending of a file without that of its compression: `.jsonl` for `a.jsonl.gz`."""
    return (file.with_suffix("") if is_compressed(file) else file).suffix.lower()


def is_compressed(file: Path) -> bool:
    return file.suffix.lower() in OPENERS


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed, after the byte order mark that it may begin with."""
    with OPENERS.get(file.suffix.lower(), open)(file, "rb") as raw:
        stream: Any = io.BufferedReader(raw) if not hasattr(raw, "peek") else raw
        if stream.peek(len(BOM))[: len(BOM)] == BOM:
            stream.read(len(BOM))
        yield stream


def _zstd(file: Path, mode: str) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(file), mode), "zstd")


def _json(file: Path) -> Iterator[Row]:
    """Read a file of one JSON list, or of lines."""
    with opened(file) as stream:
        start = next((line for line in stream if line.strip()), b"").lstrip()[:1]
    if start != b"[":
        yield from _lines(file)
        return
    with opened(file) as stream:
        text = stream.read().decode()
    value = _parsed(text, f"data file {file}")
    if isinstance(value, BadRow):
        raise ConfigError(str(value))
    for number, row in enumerate(value, start=1):
        yield f"row {number}", _object(row, f"data file {file}, row {number}")


def _lines(file: Path) -> Iterator[Row]:
    """Read JSON lines. They end at newlines alone: strings in them may contain other ends of lines, as U+2028."""
    with opened(file) as stream:
        yield from _numbered(stream, 1, file)


def _numbered(lines: Iterable[bytes], first: int, file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            yield f"line {number}", _row(line, f"data file {file}, line {number}")


def _row(line: bytes, place: str) -> Mapping[str, Any] | BadRow:
    try:
        text = line.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        return BadRow(f"{place} is not UTF-8 text: {error}")
    value = _parsed(text, place)
    return value if isinstance(value, BadRow) else _object(value, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return parse_json(text, once=True)
    except ValueError as error:
        return BadRow(f"{place} is not JSON: {error}")


def _object(value: Any, place: str) -> Mapping[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow(f"{place} must hold an object with named columns, but holds {type(value).__name__}")


def _csv(file: Path) -> Iterator[Row]:
    """Read a table with a head, with commas or semicolons. Its cells are texts: 007 stays 007.

    A quote in a quoted cell must stand twice: a single one would be left out of the text, without a word.
    """
    csv.field_size_limit(sys.maxsize)
    with opened(file) as stream, io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        head = text.readline()
        mark = "\t" if kind(file) == ".tsv" else ";" if ";" in head and "," not in head else ","
        names = next(csv.reader([head], delimiter=mark), [])
        check_names(names, file)
        lines: list[str] = []  # of the row that is read
        reader = csv.DictReader(_noted(text, lines), names, delimiter=mark, strict=True)
        for row in _quoted(reader, file):
            place = f"line {reader.line_num + 1}"
            if _spaced(row, lines, mark):
                raise ConfigError(
                    f"data file {file}, {place}: a space is before the quote of a cell, so its quotes would be read as "
                    "text: take the spaces after the commas out"
                )
            lines.clear()
            wrong = "has more cells than the head" if None in row else ""
            wrong = wrong or ("repeats the head" if list(row.values()) == names and len(names) > 1 else "")
            yield place, BadRow(f"data file {file}, {place} {wrong}") if wrong else row


def _noted(text: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in text:
        lines.append(line.removeprefix(MARK))
        yield lines[-1]


def _spaced(row: Mapping[str, Any], lines: list[str], mark: str) -> bool:
    """Whether a cell is quoted after a space: without the space, the same lines have another cell there."""
    cells = [cell for cell in row.values() if isinstance(cell, str) and cell.lstrip(" ")[:1] == '"' != cell[:1]]
    again = csv.reader(lines, delimiter=mark, skipinitialspace=True) if cells else ()
    return not set(cells) <= {cell for one in again for cell in one}


def _quoted(reader: csv.DictReader[str], file: Path) -> Iterator[dict[str | Any, Any]]:
    """Yield the rows. Raises ConfigError for a cell whose quotes do not add up."""
    try:
        yield from reader
    except csv.Error as error:
        raise ConfigError(
            f"data file {file}, line {reader.line_num + 1}: a cell that begins with a quote must end with one, and "
            f"quotes inside of it must stand twice ({error}). Save the table again with a program that writes CSV, or "
            "as JSON lines"
        ) from error


def _in_batches(file: Path) -> Iterator[Row]:
    yield from _batch_rows(BATCHES[kind(file)](file), 1)


def _batch_rows(batches: Iterable[Any], first: int) -> Iterator[Row]:
    cells = ((row, batch.schema) for batch in batches for row in batch.to_pylist())
    for number, (row, schema) in enumerate(cells, start=first):
        types = zip(row.items(), schema.types, strict=True)
        yield f"row {number}", {name: as_stored(filled(cell), dtype) for (name, cell), dtype in types}


def filled(value: Any) -> Any:
    """Leave out keys that are null inside of a cell: tables of one schema fill up what a row does not have."""
    if isinstance(value, Mapping):
        return {key: filled(one) for key, one in value.items() if one is not None}
    return [filled(one) for one in value] if isinstance(value, list) else value


OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    **dict.fromkeys(BATCHES, _in_batches),
}

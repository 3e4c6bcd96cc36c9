"""Local files: tables, or plain text."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.files import leads_away, read_text
from experiments.common.hashing import cache_stamp, short_digest
from experiments.common.spread import spread
from experiments.data.cells import BadRow, blank
from experiments.data.columnar import class_names
from experiments.data.columns import Columns, Usable
from experiments.data.items import Example, Text
from experiments.data.source import Finite
from experiments.data.splits import said_together
from experiments.data.stored import VERSION, Stored, stored
from experiments.data.tables import MARK, OPENERS, READERS, is_compressed, kind, rows
from experiments.data.unread import passed_over, said_classes, said_empty, said_unread

TABLES = tuple(READERS)
TEXTS = (".txt", ".md", ".rst", ".py")
# files that come with a data set and are no part of it; those of CARDS only next to tables
CARDS = ("readme", "license", "licence", "notice", "citation", "changelog", "contributing", "security")
LARGE = 2**21  # bytes of tables that are read into memory; larger ones are kept on disk as they were read
PACKED = 4  # times that a compressed table is larger than its file, or more
CACHE = re.compile(r"cache-[0-9a-f]{16}.*\.arrow")  # what `datasets` writes next to a saved data set: map, filter
PART_NAME = re.compile(r"(.*\D|)(\d+)-of-(\d+)[^.]*(.*)")  # of a table: train-00000-of-00003.parquet
KINDS = f"{', '.join(TABLES + TEXTS)}; a table may end with {', '.join(OPENERS)} too"
SOME = 5  # files that are named
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


class LocalFile(Columns, Finite):
    """A file, or all files of one folder: `.jsonl`, `.json` (lines or one list), `.csv`, `.parquet`, `.arrow`, or text.

    Tables may be compressed (`.jsonl.gz`, also `.zst`, `.bz2`, `.xz`).
    A text file is split into documents at `separator`; if that is empty, each file is a document.
    """

    source: Literal["file"] = "file"
    path: str = Field(description="a file, or a folder of files")
    separator: str = Field("\n\n", description="text between the documents of a text file")

    @property
    def label(self) -> str:
        return Path(self.path).stem

    @property
    def examples(self) -> Sequence[Example]:
        return self._found[0]

    @property
    def recognised(self) -> str:
        (first, *_), _ = self._files()
        if kind(first) not in TABLES:
            return "plain text"
        row = self._first(first)
        return self.shape(row, str(first)).described(row)

    def _first(self, file: Path) -> Mapping[str, Any]:
        """Return the first row that can be read."""
        return next((row for _, row in rows(file) if not isinstance(row, BadRow)), {})

    @property
    def notes(self) -> list[str]:
        _, said = self._found
        return [
            *self.escapes,
            *said,
            *dict.fromkeys(line for file in self._files()[0] for line in said_classes(self._classes(file))),
        ]

    def _classes(self, file: Path) -> dict[str, list[str]]:
        """Return the names of the classes of the columns of a file that are read."""
        if not (names := class_names(file)):
            return {}
        shape = self.shape(self._first(file), str(file))
        return {name: found for name, found in names.items() if name in (*shape.columns, *shape.also)}

    @functools.cached_property
    def _found(self) -> tuple[Sequence[Example], list[str]]:
        """All examples, and what was not read of the files."""
        files, notes = self._files()
        table = self._table(files)
        if table:
            notes += [*passed_over(table.faults), *said_empty(table.words)]
            return table, [*notes, *_repeated(table.repeated, len(table)), *said_unread(table.words)]
        found: list[Example] = []
        faults: list[str] = []
        words: Counter[str] = Counter()
        divided = not any(map(_is_text, files)) or self.separator in ("", LocalFile.model_fields["separator"].default)
        for file in files:
            read = self._read(file)
            divided = divided or (_is_text(file) and len(read.examples) > 1)
            found += read.examples.values()
            faults += read.faults
            words += read.words
        if not found:
            raise ConfigError(f"data file {self.path} is empty: there is nothing to train on")
        examples = tuple(dict.fromkeys(found))
        notes += [] if divided else [f"separator={self.separator!r} divides no file: each text file is one document"]
        notes += [*passed_over(faults), *said_empty(words)]
        return examples, [*notes, *_repeated(len(found) - len(examples), len(examples)), *said_unread(words)]

    def _table(self, files: Sequence[Path]) -> Stored | None:
        """Return the examples of large tables on disk; None for others, and if there is no room for them."""
        size = sum(file.stat().st_size * (PACKED if is_compressed(file) else 1) for file in files)
        if size < LARGE or any(kind(file) not in TABLES for file in files):
            return None
        fields = self.model_dump_json(exclude={"share", "path", "test"})
        stamps = json.dumps([[str(file), *cache_stamp(file)] for file in files])
        found = (part for file in files for part in spread(self.packed_part, self.chunks(file)))
        try:
            table = stored(short_digest(str(VERSION), fields, stamps), found, distinct=True)
        except (OSError, TypeError):
            return None
        return table if len(table) else None

    @property
    def tables_alone(self) -> bool:
        """Whether no file is a text. By the name, if the files cannot be read here."""
        with suppress(ConfigError):
            return not any(map(_is_text, self._files()[0]))
        return kind(Path(self.path)) in TABLES

    def has_column(self, name: str) -> bool:
        """Whether the first row of the first table has a column. Raises ConfigError for a file that cannot be read."""
        file = self._files()[0][0]
        if _is_text(file):
            return False
        return name in self._first(file)

    def _files(self) -> tuple[list[Path], list[str]]:
        """Return the files to read, and a note on those of a folder that describe its tables."""
        path = Path(self.path).expanduser()
        if not path.exists():
            raise ConfigError(f"data file {self.path} does not exist (looked in {Path.cwd()})")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [file for file in inside if file == path or _known(file)]
        if odd := next((file for file in files if not (file.is_file() or file.is_dir())), None):
            why = "is a link to nothing: correct it, or delete it"
            if odd.exists():
                why = "is no regular file (a pipe or a device has no end): save it as a file"
            raise ConfigError(f"data file {odd} {why}")
        caches = [file for file in files if file != path and CACHE.fullmatch(file.name)]
        files = [file for file in files if file not in caches]
        data = [file for file in files if file == path or not _describes(file.relative_to(path), files)]
        links = [file for file in inside if file.is_symlink() and file.is_dir() and file != path]
        if not data or not _known(data[0]):
            linked = f". Links to folders are not read: name {links[0]} itself" if links else ""
            raise ConfigError(f"data file {self.path}: no file of a known kind; known: {KINDS}{linked}")
        reasons = {
            "they describe the data": [file for file in files if file not in data],
            "they are links to folders": links,
            "they are caches of the package datasets": caches,
        }
        notes = [
            f"not read, because {why}: {', '.join(str(file.relative_to(path)) for file in left)}"
            for why, left in reasons.items()
            if left
        ]
        if path.is_dir() and (unknown := _unknown(path, inside)):
            notes.append(f"not read, because they are of no known kind ({KINDS}): {unknown}")
        return data, [*notes, *_notes_on_read(path, data)]

    def _read(self, file: Path) -> Usable:
        try:
            if _is_text(file):
                return Usable(dict(enumerate(self._documents(file), start=1)), [], Counter())
            return self.usable(rows(file), str(file))
        except UnicodeDecodeError as error:
            raise ConfigError(f"data file {file} is not UTF-8 text: {error}") from error

    def _documents(self, file: Path) -> list[Example]:
        if self.named:
            raise ConfigError(
                f"data file {file} is plain text and has no columns: leave out question, answer and text, or give a "
                f"table ({', '.join(TABLES)})"
            )
        text = read_text(file).replace(MARK, "")  # of files that were joined
        if not self.separator.strip("\n"):
            text = re.sub(r"^[ \t]+$", "", text, flags=re.MULTILINE)  # lines that look empty
        parts = text.split(self.separator) if self.separator else [text]
        return [Text(part.strip("\n")) for part in parts if not blank(part)]


def _repeated(repeated: int, kept: int) -> list[str]:
    if not repeated:
        return []
    return [f"{repeated} of {repeated + kept} examples repeat an earlier one and are read once"]


def _notes_on_read(path: Path, data: Sequence[Path]) -> Iterator[str]:
    """Say of the files of a folder that are read what may not be meant: links to elsewhere, several splits, texts."""
    if away := [file for file in data if file != path and leads_away(file, path)]:
        some = f"such as {away[0].relative_to(path)} to {away[0].resolve()}"
        yield f"{len(away)} of the files that are read are links out of {path}, {some}"
    if path.is_dir():
        yield from missing_parts(data)
    yield from said_together([file.relative_to(path) for file in data if kind(file) in (*TABLES, ".txt")])
    documents = [str(file.relative_to(path)) for file in data if _is_text(file)]
    cards = [str(file.relative_to(path)) for file in data if _is_text(file) and _is_card(file)]
    if 0 < len(cards) < len(data):
        yield f"read as documents, like the other texts: {', '.join(cards)}; move them away if they describe the data"
    if 0 < len(documents) < len(data):
        yield f"read as documents, next to tables: {', '.join(documents)}; for the tables alone, name the path of one"


def missing_parts(files: Sequence[Path]) -> Iterator[str]:
    """Say which parts of a table are not here, by the names of the others: of a download that was stopped, perhaps."""
    here = defaultdict[tuple[Path, str, str, str], set[int]](set)
    for file in files:
        if part := PART_NAME.fullmatch(file.name):
            here[file.parent, part[1], part[3], part[4]].add(int(part[2]))
    for (_, start, count, _), numbers in here.items():
        first = int(int(count) in numbers)  # some count from 1
        asked = range(first, int(count) + first)  # of a name that is no part's it may be long
        if left := int(count) - len([number for number in numbers if number in asked]):
            some = f"{start}{next(n for n in asked if n not in numbers):0{len(count)}}-of-{count}"
            yield f"{left} of {int(count)} parts of the data are not here, such as {some}: the others are read"


def _describes(file: Path, files: Sequence[Path]) -> bool:
    """Whether a file of a folder describes a data set: its metadata, hidden files, and next to tables its card."""
    if file.name in METADATA or any(part.startswith(".") for part in file.parts):
        return True
    tables = any(kind(other) in TABLES and other.name not in METADATA for other in files)
    return tables and _is_text(file) and _is_card(file)


def _known(file: Path) -> bool:
    return kind(file) in TABLES or _is_text(file)


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in TEXTS


def _is_card(file: Path) -> bool:
    return file.stem.lower() in CARDS


def _unknown(folder: Path, inside: Sequence[Path]) -> str:
    """Name some files of a folder that no reader knows, and count the others; nothing if there are none."""
    others = [file.relative_to(folder) for file in inside if file.is_file() and not _known(file) and not _is_card(file)]
    names = [str(name) for name in others if not any(part.startswith(".") for part in name.parts)]
    more = f" and {len(names) - SOME} more" if len(names) > SOME else ""
    return f"{', '.join(names[:SOME])}{more}"

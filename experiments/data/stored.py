"""Keep the examples of a large table on disk, memory-mapped: read once, checked once, and opened in no time later."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

from filelock import FileLock

from experiments.common.files import read_note, write_json
from experiments.common.hashing import file_stamp
from experiments.data.cache_room import in_use, prune
from experiments.data.items import Chat, Example, Item, Text
from experiments.models.base import cache_folder
from experiments.models.conversation import Conversation

VERSION = 10  # of the files: raise it when a change of the code changes what is written
BATCH = 2000  # rows that are written at a time
NOTE, ROWS = "note.json", "rows.arrow"


class Packed(NamedTuple):
    """An example as it is written. ids: of its question, and of the questions of its earlier replies."""

    row: str
    ids: str
    text: str  # its `repr`, of which a source's digest is made

    @property
    def key(self) -> int:
        """A number that only equal examples share."""
        return int.from_bytes(hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()[:8])


def packed(example: Example) -> Packed:
    """Return an example as it is written. Raises TypeError for one with values for a grader that are no literals."""
    if isinstance(example, Text):
        fields: list[Any] = [example.text, example.group, example.ended]
        return Packed(json.dumps(fields), example.id, repr(example))
    question = example.question
    place = question.place if isinstance(question, Conversation) else None
    values = _literal(example.metadata) if example.metadata else ""
    fields = [str(question), place, example.answer, example.solution, example.ended, values]
    if isinstance(example, Chat):
        fields += [example.fields, example.context]
        return Packed(json.dumps(fields), " ".join([example.id, *sorted(example.ids - {example.id})]), repr(example))
    return Packed(json.dumps(fields), example.id, repr(example))


def _literal(metadata: Mapping[str, Any]) -> str:
    text = repr(dict(metadata))
    try:
        if repr(ast.literal_eval(text)) == text:
            return text
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    raise TypeError(f"values for a grader that are no literals are not stored: {text[:60]}")


def unpacked(row: str) -> Example:
    """Return the example that `packed` has written."""
    fields = json.loads(row)
    if len(fields) == 3:
        return Text(*fields)
    question, place, answer, solution, ended, values, *chat = fields
    if place is not None:
        question = Conversation(question)
        question.place = place
    kind = Chat if chat else Item
    return kind(question, answer, ast.literal_eval(values) if values else {}, solution, ended, *chat)


@dataclass(frozen=True)
class Found:
    """Examples of a part of a table, as they are written; the rest as in `columns.Usable`."""

    examples: list[Packed]
    faults: list[str]
    words: Counter[str] = field(default_factory=Counter)


class Stored(Sequence[Example]):
    """The examples of a table in a folder, read from disk one by one. digest: as `Finite.digest` of the same examples.

    faults, words: as in `columns.Usable`. repeated: examples that were left out because an earlier one is equal.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow

        self.folder, self.in_use = folder, in_use(folder)
        note = read_note(folder / NOTE)
        if note.get("rows", "") not in (_sampled(folder / ROWS), ""):  # earlier versions noted none
            raise ValueError(f"{folder / ROWS} is damaged")
        if note.get("key", folder.name) != folder.name:
            raise ValueError(f"{folder} has the rows of another table")
        self.digest, self.faults = str(note["digest"]), list(note["faults"])
        self.words = dict(note["words"])
        self.repeated, self.size = int(note["repeated"]), int(note["examples"])
        self.table = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / ROWS))).read_all()
        if len(self.table) != self.size:
            raise ValueError(f"{folder} has {len(self.table)} rows in place of {self.size}")

    def __reduce__(self) -> tuple[type[Stored], tuple[Path]]:
        """Copy it, also to another process, by opening it again."""
        return Stored, (self.folder,)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        rows = self.table["row"]
        return (
            unpacked(rows[index].as_py()) if isinstance(index, int) else [unpacked(one.as_py()) for one in rows[index]]
        )

    def __iter__(self) -> Iterator[Example]:
        for batch in self.table.to_batches(max_chunksize=BATCH):
            yield from map(unpacked, batch.column("row").to_pylist())

    @property
    def values(self) -> Iterator[str]:
        """The `repr` of the values for a grader, of each question."""
        for batch in self.table.to_batches(max_chunksize=BATCH):
            yield from (fields[5] or "{}" for fields in map(json.loads, batch.column("row").to_pylist()) if fields[3:])

    @property
    def ids(self) -> list[str]:
        """The id of each example."""
        return [ids.partition(" ")[0] for ids in self._all_ids()]

    def free(self, held_out: frozenset[str]) -> list[int]:
        """Return the indices of the examples that are not held out, as `is_held_out` says."""
        return [i for i, ids in enumerate(self._all_ids()) if held_out.isdisjoint(ids.split(" "))]

    def _all_ids(self) -> Iterator[str]:
        for batch in self.table.to_batches(max_chunksize=BATCH):
            yield from batch.column("ids").to_pylist()


def stored(key: str, parts: Iterable[Found], distinct: bool) -> Stored:
    """Return the examples of a table from the cache, or read them from `parts` and keep them there.

    key: digest of all that they depend on. distinct: leave out examples that are equal to an earlier one. Processes
    that need the same wait for the first. Raises TypeError if examples cannot be stored, OSError if there is no room.
    """
    folder = cache_folder() / "tables" / key
    with in_use(folder), FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        try:
            return Stored(folder)
        except (OSError, ValueError, LookupError):  # not there, or damaged
            _write(folder, parts, distinct)
            prune()
            return Stored(folder)


def _write(folder: Path, parts: Iterable[Found], distinct: bool) -> None:
    import pyarrow

    (folder / NOTE).unlink(missing_ok=True)
    digest, faults, seen = hashlib.sha256(), list[str](), set[int]()
    given, written, words = 0, 0, Counter[str]()
    schema = pyarrow.schema([("row", pyarrow.large_string()), ("ids", pyarrow.large_string())])
    with pyarrow.ipc.new_file(str(folder / ROWS), schema) as file:
        for part in parts:
            given, faults, words = given + len(part.examples), faults + part.faults, words + part.words
            new = [one for one in part.examples if not (distinct and _known(one.key, seen))]
            for one in new:
                digest.update(one.text.encode("utf-8", "surrogatepass") + b"\0")
            file.write_batch(pyarrow.record_batch([[one.row for one in new], [one.ids for one in new]], schema=schema))
            written += len(new)
    with (folder / ROWS).open("rb") as done:
        os.fsync(done.fileno())
    note = {"examples": written, "repeated": given - written, "faults": faults, "digest": digest.hexdigest()[:16]}
    write_json(folder / NOTE, note | {"words": words, "rows": _sampled(folder / ROWS), "key": folder.name})


def _sampled(file: Path) -> list[Any]:
    """Return size and digest of samples: cheap for any size, unlike that of all bytes."""
    return file_stamp(file)[::2]


def _known(key: int, seen: set[int]) -> bool:
    known = key in seen
    seen.add(key)
    return known

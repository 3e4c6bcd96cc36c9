"""Keep the tokens of examples on disk, so that no later epoch, arm, resume, run or process tokenises again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import BaseFileLock, FileLock

from experiments.common.hashing import sha256
from experiments.data.cache_room import in_use, prune
from experiments.data.encoding import Encoded, Piece
from experiments.models.tokens import IGNORED

One = TypeVar("One")
MAPPED = 2**34  # bytes of the file that SQLite may read through memory


@dataclass(frozen=True)
class Size:
    """How long an example is: number of pieces, their tokens, and tokens that are in none. refused: as in `Encoded`.

    new: it is not from the cache.
    """

    pieces: int
    tokens: int
    left_out: int
    refused: str = ""
    new: bool = False


def size_of(encoded: Encoded) -> Size:
    """Return how long an example is that was encoded just now."""
    return Size(len(encoded.pieces), sum(map(len, encoded.pieces)), encoded.left_out, encoded.refused, True)


class TokenCache:
    """A SQLite file: the number of an example in its table -> its tokens and labels. Several processes may use it.

    A damaged file is made anew, as one of another table (its `user_version` is a digest of the file's name). One that
    cannot be written is not used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.base = path, self._open(path)

    def writing(self) -> contextlib.AbstractContextManager[object]:
        """Keep other processes out while this one makes what they need too: what is read inside is up to date."""
        return self._lock if self.base is not None else contextlib.nullcontext()

    @functools.cached_property
    def _lock(self) -> BaseFileLock:
        return FileLock(f"{self.path}.lock")

    def read(self, numbers: Sequence[int]) -> dict[int, Encoded]:
        """Return those of the examples that are known."""
        return self._read("value", numbers, decoded)

    def sizes(self, numbers: Sequence[int]) -> dict[int, Size]:
        """Return how long those of the examples are that are known, without reading their tokens."""
        return self._read("length(value), substr(value, 5, 8)", numbers, size)

    def _read(self, columns: str, numbers: Sequence[int], made: Callable[..., One | None]) -> dict[int, One]:
        if self.base is None:
            return {}
        query = f"SELECT number, {columns} FROM tokens WHERE number IN ({','.join('?' * len(numbers))})"
        try:
            found = self.base.execute(query, numbers).fetchall()
        except sqlite3.OperationalError:  # busy for a minute
            return {}
        except sqlite3.DatabaseError:
            self.base.close()
            self.base = self._anew(self.path)
            return {}
        return {number: one for number, *values in found if (one := made(*values)) is not None}

    def write(self, found: dict[int, Encoded]) -> None:
        if self.base is not None and found:
            rows = [(number, value_of(one)) for number, one in found.items()]
            with contextlib.suppress(sqlite3.Error), self.base:
                self.base.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?)", rows)

    def _open(self, path: Path) -> sqlite3.Connection | None:
        try:
            self.in_use = in_use(path)
            if not path.exists():
                prune()
            base = sqlite3.connect(path, timeout=60)
            base.execute(f"PRAGMA mmap_size = {MAPPED}")
            base.execute("CREATE TABLE IF NOT EXISTS tokens (number INTEGER PRIMARY KEY, value BLOB NOT NULL)")
            own = int(sha256(path.stem)[:7], 16)
            (version,) = base.execute("PRAGMA user_version").fetchone()
            if version not in (0, own):  # 0: of an earlier version
                raise sqlite3.DatabaseError("the tokens of another table")
            base.execute(f"PRAGMA user_version = {own}")
        except (OSError, sqlite3.OperationalError):
            return None
        except sqlite3.DatabaseError:
            base.close()
            return self._anew(path)
        return base

    def _anew(self, path: Path) -> sqlite3.Connection | None:
        """Replace a damaged file."""
        path.unlink(missing_ok=True)
        return self._open(path)


def value_of(encoded: Encoded) -> bytes:
    """Return tokens and labels as bytes: a checksum, counts, ids (int32), and for each token whether it is learned."""
    ids = [token for piece in encoded.pieces for token in piece.ids]
    learned = [label != IGNORED for piece in encoded.pieces for label in piece.labels]
    head = [encoded.left_out, len(encoded.pieces), *map(len, encoded.pieces)]
    value = np.array(head + ids, dtype="<i4").tobytes() + np.array(learned, dtype="u1").tobytes()
    return zlib.crc32(value).to_bytes(4, "little") + value


def decoded(value: bytes) -> Encoded | None:
    """Return what `value_of` has written; None if it is damaged."""
    if zlib.crc32(value[4:]).to_bytes(4, "little") != value[:4]:
        return None
    left_out, count = np.frombuffer(value, "<i4", 2, 4).tolist()
    sizes = np.frombuffer(value, "<i4", count, 12).tolist()
    start, total = 12 + 4 * count, sum(sizes)
    ids = np.frombuffer(value, "<i4", total, start)
    labels = np.where(np.frombuffer(value, "u1", total, start + 4 * total), ids, IGNORED).tolist()
    ends = list(itertools.accumulate(sizes, initial=0))
    whole = ids.tolist()
    return Encoded([Piece(whole[a:b], labels[a:b]) for a, b in itertools.pairwise(ends)], left_out)


def size(length: int, head: bytes) -> Size | None:
    """Return how long an example is, from the length of its bytes (`value_of`) and the counts at their beginning.

    None if the counts cannot be those of so many bytes.
    """
    if len(head) < 8:
        return None
    left_out, pieces = np.frombuffer(head, "<i4").tolist()
    tokens, rest = divmod(length - 12 - 4 * pieces, 5)
    return Size(pieces, tokens, left_out) if not rest and min(left_out, pieces, tokens - 2 * pieces) >= 0 else None

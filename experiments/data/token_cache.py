"""Keep the tokens of a large table's examples on disk, so that no later epoch, arm, resume or run tokenises again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.common.hashing import short_digest
from experiments.common.spread import spread
from experiments.data.cache_room import in_use, prune
from experiments.data.encoding import Encoded, Encoder, Piece
from experiments.data.items import Example
from experiments.data.source import Source
from experiments.data.stored import Stored
from experiments.models.base import cache_folder
from experiments.models.tokens import IGNORED

FIRST, AHEAD = 64, 1024  # examples that are encoded at a time: few at the start, then twice as many each time
CHUNK = 32  # examples for a process at a time
FEW = 64  # so many are encoded here: starting processes takes longer
Encode = Callable[[Example], Encoded]
MAPPED = 2**34  # bytes of the file that SQLite may read through memory


class TokenCache:
    """A SQLite file: the number of an example in its table -> its tokens and labels. Several processes may use it.

    A damaged file is made anew, and one that cannot be written is not used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.base = path, self._open(path)

    def read(self, numbers: Sequence[int]) -> dict[int, Encoded]:
        """Return those of the examples that are known."""
        if self.base is None:
            return {}
        marks = ",".join("?" * len(numbers))
        try:
            found = self.base.execute(f"SELECT number, value FROM tokens WHERE number IN ({marks})", numbers).fetchall()
        except sqlite3.OperationalError:  # busy for a minute
            return {}
        except sqlite3.DatabaseError:
            self.base.close()
            self.base = self._anew(self.path)
            return {}
        return {number: one for number, value in found if (one := decoded(value)) is not None}

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


def encoded_epoch(
    source: Source, number: int, seed: int, held_out_ids: frozenset[str], encoder: Encoder
) -> Iterator[Encoded]:
    """Return the encoded examples of one pass of a source, in the order of this pass."""
    table = source.table
    if table is None:
        return map(encode_of(source, encoder), source.epoch(number, seed, held_out_ids))
    key = short_digest(source.digest(), encoder.key)
    return encoded(table, source.order(number, seed, held_out_ids), encode_of(source, encoder), key)


def encode_of(source: Source, encoder: Encoder) -> Encode:
    """Return how the examples of a source are encoded."""
    return encoder.encode_or_skip if source.skips else encoder.encode


def encoded(table: Stored, order: Sequence[int], encode: Encode, key: str) -> Iterator[Encoded]:
    """Yield the encoded examples of a table in an order. What is not in the cache is encoded by all cores, and kept.

    key: digest of the table and of how its examples are encoded. Raises ConfigError as `encode` does.
    """
    cache = TokenCache(cache_folder() / "tokens" / f"{key}.db")
    start, size = 0, FIRST
    while numbers := list(order[start : start + size]):
        start, size = start + size, min(2 * size, AHEAD)
        known = cache.read(numbers)
        new = dict(_encoded([n for n in numbers if n not in known], table, encode))
        cache.write({number: one for number, one in new.items() if not one.refused})
        known |= new
        yield from (known[n] for n in numbers)


def _encoded(numbers: Sequence[int], table: Stored, encode: Encode) -> Iterator[tuple[int, Encoded]]:
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    each = functools.partial(_each, table, encode)
    for some, found in zip(chunks, spread(each, chunks, 1 if len(numbers) <= FEW else None), strict=True):
        yield from zip(some, found, strict=True)


def _each(table: Stored, encode: Encode, numbers: Sequence[int]) -> list[Encoded]:
    return [encode(table[number]) for number in numbers]

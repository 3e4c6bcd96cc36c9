"""The examples of a source as tokens, pass by pass: from the cache, or made by all cores and kept there."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.spread import spread
from experiments.data.encoding import Encoded, Encoder
from experiments.data.items import Example
from experiments.data.source import Source
from experiments.data.stored import Stored
from experiments.data.token_cache import Size, TokenCache, size_of
from experiments.models.base import cache_folder

FIRST, AHEAD = 64, 1024  # examples that are encoded at a time: few at the start, then twice as many each time
CHUNK = 32  # examples for a process at a time
FEW = 64  # so many are encoded here: starting processes takes longer
Encode = Callable[[Example], Encoded]
Table = Stored | Mapping[int, Example]
Part = tuple[Sequence[int], Table]  # numbers of some examples, in the order of a pass, and where they are
One = TypeVar("One")


def encoded_epoch(
    source: Source, number: int, seed: int, held_out_ids: frozenset[str], encoder: Encoder
) -> Iterator[Encoded]:
    """Return the encoded examples of one pass of a source, in the order of this pass."""
    parts = _parts(source, number, seed, held_out_ids)
    if parts is None:
        return map(encode_of(source, encoder), source.epoch(number, seed, held_out_ids))
    cache = _cache(source, encoder)
    return _passed(parts, encode_of(source, encoder), cache, cache.read, lambda one: one)


def sizes_of_epoch(
    source: Source, number: int, seed: int, held_out_ids: frozenset[str], encoder: Encoder
) -> Iterator[Size]:
    """Return how long the examples of one pass are. Of those in the cache no tokens are read."""
    parts = _parts(source, number, seed, held_out_ids)
    if parts is None:
        return map(size_of, encoded_epoch(source, number, seed, held_out_ids, encoder))
    cache = _cache(source, encoder)
    return _passed(parts, encode_of(source, encoder), cache, cache.sizes, size_of)


def encode_of(source: Source, encoder: Encoder) -> Encode:
    """Return how the examples of a source are encoded."""
    return encoder.encode_or_skip if source.skips else encoder.encode


def _cache(source: Source, encoder: Encoder) -> TokenCache:
    content = source.digest() if source.table is None else source.table.digest  # its numbers are of the rows as read
    return TokenCache(cache_folder() / "tokens" / f"{short_digest(content, encoder.key)}.db")


def _parts(source: Source, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Part] | None:
    """Return one pass of a source whose tokens are kept: a table or a stream. None for those in memory."""
    if source.table is not None:
        return _of_table(source.table, source.order(number, seed, held_out_ids))
    return _of_stream(source.epoch(number, seed, held_out_ids)) if source.streamed else None


def _of_table(table: Stored, order: Sequence[int]) -> Iterator[Part]:
    start, size = 0, FIRST
    while numbers := list(order[start : start + size]):
        yield numbers, table
        start, size = start + size, min(2 * size, AHEAD)


def _of_stream(examples: Iterator[Example]) -> Iterator[Part]:
    """Yield parts of a stream. The number of an example is a digest of it: what is streamed tomorrow may be other rows.

    An error of a row is raised after the rows before it.
    """
    size, fault = FIRST, None
    while fault is None:
        some: list[Example] = []
        try:
            some.extend(itertools.islice(examples, size))
        except ConfigError as error:
            fault = error
        if not some and fault is None:
            return
        numbers = [int(short_digest(repr(example)), 16) >> 1 for example in some]  # SQLite has 63 bits
        yield numbers, dict(zip(numbers, some, strict=True))
        size = min(2 * size, AHEAD)
    raise fault


def _passed(
    parts: Iterable[Part],
    encode: Encode,
    cache: TokenCache,
    read: Callable[[Sequence[int]], dict[int, One]],
    made: Callable[[Encoded], One],
) -> Iterator[One]:
    """Yield what is wanted of the examples of a pass: `read` for known ones, else `made` of the tokens.

    What is not in the cache is encoded by all cores, and kept. One process does it, and others that need it too wait.
    Raises ConfigError as `encode` does, in each of them.
    """
    for numbers, table in parts:
        known = read(numbers)
        if any(n not in known for n in numbers):
            with cache.writing():
                known |= read([n for n in numbers if n not in known])
                new = dict(_encoded([n for n in dict.fromkeys(numbers) if n not in known], table, encode))
                cache.write({number: one for number, one in new.items() if not one.refused})
            known |= {number: made(one) for number, one in new.items()}
        yield from (known[n] for n in numbers)


def _encoded(numbers: Sequence[int], table: Table, encode: Encode) -> Iterator[tuple[int, Encoded]]:
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    each = functools.partial(_each, table, encode)
    for some, found in zip(chunks, spread(each, chunks, 1 if len(numbers) <= FEW else None), strict=True):
        yield from zip(some, found, strict=True)


def _each(table: Table, encode: Encode, numbers: Sequence[int]) -> list[Encoded]:
    return [encode(table[number]) for number in numbers]

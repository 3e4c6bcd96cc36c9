"""Tokens on disk: read as they were written, and lengths without reading them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.encoding import Encoded, Piece
from experiments.data.token_cache import TokenCache, decoded, size, size_of, value_of
from experiments.models.tokens import IGNORED

TOKENS = st.lists(st.tuples(st.integers(0, 2**20), st.booleans()), min_size=2, max_size=20)


@given(st.lists(TOKENS, max_size=4), st.integers(0, 10**6))
def test_tokens_are_read_as_they_were_written(pieces: list[list[tuple[int, bool]]], left_out: int) -> None:
    made = [Piece([i for i, _ in one], [i if learned else IGNORED for i, learned in one]) for one in pieces]
    value = value_of(Encoded(made, left_out))
    assert decoded(value) == Encoded(made, left_out)
    assert decoded(value[:-1] + bytes([value[-1] ^ 255])) is None


def test_lengths_are_known_without_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece([1, 2, 3], [-100, 2, 3]), Piece([4] * 300, [4] * 300)]
    made = {7: Encoded([], 90), 3: Encoded(pieces, 2), 5: Encoded(pieces[:1])}
    cache = TokenCache(tmp_path / "tokens" / "a.db")
    cache.write(made)
    monkeypatch.setattr("experiments.data.token_cache.decoded", lambda value: pytest.fail("tokens were read"))
    wanted = {number: dataclasses.replace(size_of(one), new=False) for number, one in made.items()}
    assert cache.sizes([3, 4, 5, 7]) == wanted
    assert (wanted[3].pieces, wanted[3].tokens, wanted[3].left_out) == (2, 303, 2)


@given(st.lists(TOKENS, max_size=4), st.integers(0, 10**6), st.binary(max_size=8))
def test_counts_that_do_not_fit_the_bytes_are_none(
    pieces: list[list[tuple[int, bool]]], left_out: int, other: bytes
) -> None:
    made = Encoded([Piece([i for i, _ in one], [i for i, _ in one]) for one in pieces], left_out)
    value = value_of(made)
    assert size(len(value), value[4:12]) == dataclasses.replace(size_of(made), new=False)
    assert size(len(value) + 1, value[4:12]) is None
    found = size(len(value), other)
    assert found is None or min(found.pieces, found.tokens, found.left_out) >= 0


def test_a_file_of_another_table_is_made_anew(tmp_path: Path) -> None:
    own, other = (TokenCache(tmp_path / "tokens" / name) for name in ("a.db", "b.db"))
    other.write({7: Encoded([], 90)})
    for cache in (own, other):
        assert cache.base is not None
        cache.base.close()
    shutil.copyfile(other.path, own.path)
    assert TokenCache(other.path).read([7])
    assert TokenCache(own.path).read([7]) == {}

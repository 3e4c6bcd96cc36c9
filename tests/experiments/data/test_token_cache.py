"""Tokens on disk: the same as without, made once, and made again if they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.encoding import Encoded, Encoder, Piece
from experiments.data.files import LocalFile
from experiments.data.mixture import Mixture, Part, Rows
from experiments.data.token_cache import decoded, encoded_epoch, value_of
from experiments.models.tokens import IGNORED
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.chat_families import FAMILIES, family_tokenizer
from tests.helpers.question_files import write

NONE: frozenset[str] = frozenset()
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x" * (i % 50)}] * 2}
    for i in range(1, 160)
    if i % 50
]
TOKENS = st.lists(st.tuples(st.integers(0, 2**20), st.booleans()), min_size=2, max_size=20)


@pytest.fixture(autouse=True)
def _large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("experiments.data.files.LARGE", 0)
    monkeypatch.setattr("experiments.common.spread.cores", lambda: 1)


def source(folder: Path) -> LocalFile:
    path = folder / "chats.jsonl"
    return LocalFile(path=str(path if path.exists() else write(path, CHATS)))


def encoder(**settings: Any) -> Encoder:
    return Encoder(byte_tokenizer(), "sft", **{"length": 120, **settings})


def rows(folder: Path, count: int, **settings: Any) -> Rows:
    return Rows(Mixture([Part(source(folder), 1.0, False)], encoder(**settings), 0, NONE), count)


def never(*args: Any) -> Any:
    raise AssertionError("it was tokenised again")


@given(st.lists(TOKENS, max_size=4), st.integers(0, 10**6))
def test_tokens_are_read_as_they_were_written(pieces: list[list[tuple[int, bool]]], left_out: int) -> None:
    made = [Piece([i for i, _ in one], [i if learned else IGNORED for i, learned in one]) for one in pieces]
    value = value_of(Encoded(made, left_out))
    assert decoded(value) == Encoded(made, left_out)
    assert decoded(value[:-1] + bytes([value[-1] ^ 255])) is None


@pytest.mark.parametrize("cores", [1, 2])
def test_rows_are_those_without_a_cache_and_are_tokenised_once(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.common.spread.cores", lambda: cores)
    count = 200  # in two epochs
    found = rows(tmp_path, count)
    given = [found[i] for i in range(count)]
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "encode", never)
        resumed = rows(tmp_path, count)
        assert [resumed[i] for i in range(count - 5, count)] == given[-5:]
        assert resumed.drawn() == found.drawn()
        with pytest.raises(AssertionError, match="tokenised again"):
            _ = rows(tmp_path, 1, length=99)[0]
    assert found.drawn()[0].epochs == 2
    assert found.drawn()[0].too_long > 0
    monkeypatch.setattr("experiments.data.files.LARGE", 10**9)
    plain = rows(tmp_path, count)
    assert [plain[i] for i in range(count)] == given
    assert plain.drawn() == found.drawn()


def test_few_are_tokenised_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, one: asked.append(one) or encode(self, one))
    assert rows(tmp_path, 200)[0]
    assert len(asked) == 64


@pytest.mark.parametrize("damage", [b"no database", b""])
def test_a_damaged_file_is_made_again(damage: bytes, tmp_path: Path) -> None:
    wanted = list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder()))
    (file,) = tmp_path.glob("cache/tokens/*.db")
    file.write_bytes(damage + file.read_bytes()[len(damage) : 5000 if damage else 0])
    assert list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder())) == wanted


def test_a_file_that_cannot_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").write_text("no folder")
    found = list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder()))
    assert len(found) == len(CHATS)


def test_what_decides_the_tokens_is_in_the_key() -> None:
    other = byte_tokenizer()
    other.chat_template = CHATML + " "
    keys = {encoder(**one).key for one in ({}, {"length": 99}, {"loss": "last_turn"}, {"overlong": "cut"})}
    assert len(keys | {Encoder(other, "sft", 120).key, Encoder(byte_tokenizer(), "cpt", 120).key}) == 6
    assert Encoder(byte_tokenizer(), "sft", 120, packed=True).key == encoder().key


def test_a_row_that_the_template_refuses_is_not_kept(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "s"}] * (i % 9 == 0) + CHATS[i]["messages"]} for i in range(90)]
    table = LocalFile(path=str(write(tmp_path / "some.jsonl", rows)), skip_bad_rows=True)
    refusing = Encoder(family_tokenizer(FAMILIES["gemma-2"]), "sft", 512)
    for _ in range(2):
        found = list(encoded_epoch(table, 0, 0, NONE, refusing))
        assert [len(one.pieces) for one in found].count(0) == sum(bool(one.refused) for one in found) == 10

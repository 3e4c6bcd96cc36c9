"""Tokens of a pass: the same with a cache as without, made once, and made again if they are damaged."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.data.cells import BadRow
from experiments.data.encoding import Encoder
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.items import Example, Item
from experiments.data.mixture import Mixture, Part, Rows
from experiments.data.token_cache import size_of
from experiments.data.tokenised import _cache, encoded_epoch, sizes_of_epoch
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.chat_families import FAMILIES, family_tokenizer
from tests.helpers.question_files import write

NONE: frozenset[str] = frozenset()
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x" * (i % 50)}] * 2}
    for i in range(1, 160)
    if i % 50
]


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
def test_a_damaged_file_is_made_again(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder()))
    (file,) = tmp_path.glob("cache/tokens/*.db")
    file.write_bytes(damage + file.read_bytes()[len(damage) : 5000 if damage else 0])
    assert list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder())) == wanted
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "encode", never)
        assert list(encoded_epoch(source(tmp_path), 0, 0, NONE, encoder())) == wanted
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)  # zeros, as after a power cut
    file.write_bytes(whole)
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


def test_tokens_of_a_table_are_those_of_its_examples_as_read_now(tmp_path: Path) -> None:
    """The digest of a data set of the Hub knows its settings and files alone: read in another way, its tokens stay."""
    one, other = (SimpleNamespace(digest=lambda: "settings", table=SimpleNamespace(digest=d)) for d in ("a", "b"))
    memory = SimpleNamespace(digest=lambda: "settings", table=None)
    assert len({_cache(found, encoder()).path for found in (one, other, memory)}) == 3  # type: ignore[arg-type]


def test_a_row_that_the_template_refuses_is_not_kept(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "s"}] * (i % 9 == 0) + CHATS[i]["messages"]} for i in range(90)]
    table = LocalFile(path=str(write(tmp_path / "some.jsonl", rows)), skip_bad_rows=True)
    refusing = Encoder(family_tokenizer(FAMILIES["gemma-2"]), "sft", 512)
    for _ in range(2):
        found = list(encoded_epoch(table, 0, 0, NONE, refusing))
        assert [len(one.pieces) for one in found].count(0) == sum(bool(one.refused) for one in found) == 10


def test_sizes_are_those_of_the_pass_and_new_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [size_of(one) for one in encoded_epoch(source(tmp_path), 1, 0, NONE, encoder())]
    assert {one.left_out > 0 for one in wanted} == {True, False}
    known = [dataclasses.replace(one, new=False) for one in wanted]
    assert list(sizes_of_epoch(source(tmp_path), 1, 0, NONE, encoder())) == known
    assert next(sizes_of_epoch(source(tmp_path), 1, 0, NONE, encoder(loss="last_turn"))).new
    monkeypatch.setattr("experiments.data.files.LARGE", 10**9)
    assert list(sizes_of_epoch(source(tmp_path), 1, 0, NONE, encoder())) == wanted


def _all(folder: Path, count: int, place: Path) -> None:
    calls: list[Any] = []
    encode = Encoder.encode
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Encoder, "encode", lambda self, one: (calls.append(one), time.sleep(0.002), encode(self, one))[2]
        )
        made = rows(folder, count)
        digest = short_digest(*(repr(made[i]) for i in range(count)))
    place.write_text(f"{len(calls)} {digest}")


def test_processes_of_a_launch_tokenise_each_example_once(tmp_path: Path) -> None:
    """All of them read the same rows at the same time."""
    _ = source(tmp_path).table
    context = multiprocessing.get_context("fork")
    places = [tmp_path / f"{i}.txt" for i in range(3)]
    processes = [context.Process(target=_all, args=(tmp_path, 100, place)) for place in places]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    found = [place.read_text().split() for place in places]
    assert len({digest for _, digest in found}) == 1
    # 64 and then 128 examples at a time are encoded for 100 rows
    assert sum(int(count) for count, _ in found) == len(CHATS)


def test_an_error_is_raised_in_each_process(tmp_path: Path) -> None:
    """One that cannot tokenise gives the lock back, and those that wait meet the same error."""
    strict = encoder(overlong="error")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"chats.jsonl, line \d+ has \d+ tokens with its answer, more than"):
            list(encoded_epoch(source(tmp_path), 0, 0, NONE, strict))


def streamed(folder: Path) -> HuggingFace:
    write(folder / "stream" / "train.jsonl", CHATS + CHATS[:9])
    return HuggingFace(name=str(folder / "stream"), streaming=True)


def test_a_stream_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a resumed run, in which the rows may come in another order, as after a new version of the data."""
    found = list(encoded_epoch(streamed(tmp_path), 0, 0, NONE, encoder()))
    assert found == list(map(encoder().encode, streamed(tmp_path).epoch(0, 0, NONE)))
    assert len(found) == len(CHATS) + 9
    monkeypatch.setattr(Encoder, "encode", never)
    assert list(encoded_epoch(streamed(tmp_path), 0, 0, NONE, encoder())) == found
    other = list(encoded_epoch(streamed(tmp_path), 1, 0, NONE, encoder()))
    assert sorted(map(repr, other)) == sorted(map(repr, found))
    assert other != found
    assert not any(one.new for one in sizes_of_epoch(streamed(tmp_path), 0, 0, NONE, encoder()))


def test_rows_of_a_stream_before_a_bad_one_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch(*args: Any) -> Iterator[Example]:
        yield from (Item(f"q{i}", "a") for i in range(10))
        raise BadRow("line 11 is bad")

    monkeypatch.setattr(HuggingFace, "epoch", epoch)
    passed = encoded_epoch(streamed(tmp_path), 0, 0, NONE, encoder())
    assert len([next(passed) for _ in range(10)]) == 10
    with pytest.raises(BadRow, match="line 11 is bad"):
        next(passed)

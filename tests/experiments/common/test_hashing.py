"""Digests: the values that ids and folders of earlier versions have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.common.hashing import (
    WHOLE,
    cache_stamp,
    file_digest,
    file_stamp,
    folder_digests,
    json_digest,
    sha256,
    short_digest,
    text_id,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, its first example


def test_a_text_has_the_digest_of_the_standard() -> None:
    assert sha256("abc") == ABC
    assert text_id("abc") == ABC[:12]


def test_texts_do_not_run_into_each_other() -> None:
    assert short_digest("ab", "c") != short_digest("a", "bc")
    assert short_digest("abc") == sha256("abc\0")[:16]
    assert len(short_digest("\ud800")) == 16  # half of a surrogate pair, as broken data may have


def test_plain_values_count_and_the_order_of_keys_does_not() -> None:
    assert json_digest({"b": 1, "a": [2]}) == json_digest({"a": [2], "b": 1}) == sha256('{"a": [2], "b": 1}')
    assert json_digest({"a": Path("x")}) == json_digest({"a": "x"})


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == ABC
    with pytest.raises(FileNotFoundError, match="none"):
        file_digest(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 10, 4096, 100_000, 2_000_000])
def test_a_stamp_knows_files_of_one_size_and_time_apart(tmp_path: Path, size: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"x" * size)
    other.write_bytes(b"x" * (size - size // 10) + b"y" * (size // 10))
    for file in (one, other):
        os.utime(file, ns=(1, 1))
    assert (file_stamp(one) == file_stamp(other)) == (size == 0)
    os.utime(other, ns=(2, 2))
    assert file_stamp(one) != file_stamp(other)


@pytest.mark.parametrize(("size", "changed"), [(100_000, 1), (WHOLE, 1), (4 * WHOLE, 4 * WHOLE // 1000)])
def test_a_change_in_one_place_is_seen(tmp_path: Path, size: int, changed: int) -> None:
    file = tmp_path / "file"
    with file.open("wb") as made:
        made.truncate(size)
    before = file_stamp(file)
    with file.open("r+b") as made:
        made.seek(size // 3)
        made.write(b"x" * changed)
    os.utime(file, ns=(before[1], before[1]))
    assert file_stamp(file)[:2] == before[:2]
    assert file_stamp(file) != before


def test_a_cache_knows_a_file_that_was_given_its_old_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    before = cache_stamp(file)
    assert cache_stamp(file) == before
    os.utime(file, ns=(before[1], before[1]))
    assert (file_stamp(file), cache_stamp(file) != before) == (before[:3], True)


def test_each_file_of_a_folder_has_its_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    assert folder_digests(tmp_path) == {"file": ABC}
    assert folder_digests(tmp_path / "none") == {}

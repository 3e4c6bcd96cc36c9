"""Caches of tables stay within their limits, and keep what is in use."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from pathlib import Path

import pytest

from experiments.common.files import write_json, write_text
from experiments.data.cache_room import in_use, prune
from experiments.data.files import LocalFile
from experiments.data.items import Item
from experiments.data.stored import Found, packed, stored
from experiments.data.token_cache import TokenCache
from tests.helpers.question_files import write


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path))
    assert prune() == []  # the first one only notes the time


def entry(folder: Path, name: str, days: float, size: int = 100) -> Path:
    """Make an entry that was last used some days ago."""
    path = folder / name
    file = path if path.suffix == ".db" else path / "rows.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    in_use(path).close()
    then = time.time() - days * 86400
    os.utime(f"{path}.used", (then, then))
    return path


@pytest.mark.parametrize(
    ("days", "most", "kept"), [(30, 10**6, 3), (4, 10**6, 2), (30, 250, 2), (30, 100, 1), (0, 0, 0)]
)
def test_the_oldest_are_deleted(days: float, most: int, kept: int, tmp_path: Path) -> None:
    made = [entry(tmp_path, name, old) for name, old in (("tokens/b.db", 5), ("tables/a", 2), ("tables/c", 1))]
    other = entry(tmp_path, "a-model", 99)
    assert prune(days, most) == made[: 3 - kept]
    assert [path for path in made if path.exists()] == made[3 - kept :]
    assert other.exists()


def test_files_of_others_in_the_folder_are_kept(tmp_path: Path) -> None:
    """CONTROL_LLM_CACHE=/data, where somebody has a folder `tables`: it was deleted."""
    own, others = (
        entry(tmp_path, "tables/a", 99),
        [entry(tmp_path, name, 99) for name in ("tables/sales", "tokens/x.db")],
    )
    for other in others:
        Path(f"{other}.used").unlink()
        os.utime(other, (0, 0))
    assert prune(0, 0) == [own]
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("name", ["tables/a", "tokens/b.db"])
def test_what_is_in_use_is_kept(name: str, tmp_path: Path) -> None:
    used = entry(tmp_path, name, 99)
    one, other = in_use(used), in_use(used)  # each has a lock of its own, as those of two processes
    assert prune(0, 0) == []
    one.close()
    assert prune(0, 0) == []
    other.close()
    assert prune(0, 0) == [used]
    assert not used.exists()


@pytest.mark.parametrize("jump", [-400, 29, 400])  # days
def test_a_clock_that_jumps_deletes_nothing_that_was_used(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent, older = entry(tmp_path, "tables/a", 1), entry(tmp_path, "tokens/b.db", 19)
    now = time.time()
    monkeypatch.setattr("experiments.data.cache_room.time.time", lambda: now + jump * 86400)
    assert prune() == []
    used = in_use(recent)
    for _ in range(99):  # much later, in days of the new clock or none
        prune()
    used.close()
    assert recent.exists()
    assert older.exists() == (jump < 0)
    monkeypatch.setattr("experiments.data.cache_room.time.time", lambda: now)
    in_use(recent).close()
    assert prune() == []
    assert recent.exists()


def test_the_first_pruning_after_a_long_break_deletes_nothing_by_age(tmp_path: Path) -> None:
    entry(tmp_path, "tables/a", 99)
    (tmp_path / ".pruned").unlink()
    assert prune() == []
    assert len(prune()) == 1


def test_tables_and_tokens_are_in_use_while_they_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.files.LARGE", 0)
    monkeypatch.setattr("experiments.common.spread.cores", lambda: 1)
    old = entry(tmp_path, "tables/old", 99)
    file = write(tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": "1"} for i in range(9)])
    source, tokens = LocalFile(path=str(file)), TokenCache(tmp_path / "tokens" / "x.db")
    assert len(source.examples) == 9
    assert not old.exists()  # a new table makes room
    assert prune(0, 0) == []
    digest = source.digest()
    del source, tokens
    assert len(prune(0, 0)) == 2
    assert LocalFile(path=str(file)).digest() == digest


def test_entries_of_earlier_versions_age_from_when_they_are_found(tmp_path: Path) -> None:
    """They had no mark, so none was ever deleted. What only looks like one is of somebody else."""
    made = write_entries(tmp_path)
    for path in (*made, *(others := look_alikes(tmp_path))):
        os.utime(path, (0, 0))
    assert prune() == []
    for path in made:
        assert time.time() - Path(f"{path}.used").stat().st_mtime < 60
        then = time.time() - 31 * 86400
        os.utime(f"{path}.used", (then, then))
    assert sorted(prune()) == sorted(made)
    assert prune(0, 0) == []
    assert all(path.exists() and not Path(f"{path}.used").exists() for path in others)


def write_entries(folder: Path) -> list[Path]:
    """A table and tokens as the cache writes them, without their marks."""
    cache = TokenCache(folder / "tokens" / "0123456789abcdef.db")
    assert cache.base is not None
    cache.base.close()
    cache.in_use.close()
    table = stored("fedcba9876543210", [Found([packed(Item("1 + 1 =", "2"))], [])], False)
    table.in_use.close()
    made = [cache.path, table.folder]
    del table
    for path in made:
        Path(f"{path}.used").unlink()
    return made


def look_alikes(folder: Path) -> list[Path]:
    """Files of others: of other names, or of the same form of name with something else inside."""
    note = {"examples": 1, "digest": "x"}
    for name, files in {
        "sales": {**dict.fromkeys(("rows.arrow",), "")},
        "0" * 16: {"a.csv": "1"},
        "1" * 16: {},
    }.items():
        for file, text in files.items():
            write_text(folder / "tables" / name / file, text)
        (folder / "tables" / name).mkdir(exist_ok=True)
    write_json(folder / "tables" / ("2" * 16) / "note.json", note)
    for file in ("rows.arrow", "mine.txt"):
        write_text(folder / "tables" / ("2" * 16) / file, "")
    write_text(folder / "tokens" / f"{'3' * 16}.db", "no database")
    with contextlib.closing(sqlite3.connect(folder / "tokens" / f"{'4' * 16}.db")) as base:
        base.execute("CREATE TABLE mine (x)")
    found = [*(folder / "tables").iterdir(), *(folder / "tokens").iterdir()]
    return [path for path in found if re.fullmatch(r"(\d)\1+(\.db)?|sales", path.name)]

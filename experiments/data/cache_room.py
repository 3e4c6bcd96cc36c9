"""Keep the caches of large tables within limits: what nobody has used for long is deleted, never what is in use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from experiments.common.files import read_note
from experiments.models.base import cache_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DAYS, BYTES = 30, 50 * 10**9  # since its last use; of all entries together, of which the oldest go first
FOLDERS, USED = ("tables", "tokens"), ".used"
NAME = re.compile(r"[0-9a-f]{16}(\.db)?")  # of an entry
PRUNED, GAP = ".pruned", 10  # a file whose time is that of the last pruning; days that one pruning counts at most


def in_use(entry: Path) -> IO[str]:
    """Mark an entry of a cache, a file or a folder, as in use until the returned file is closed, also by a crash.

    Waits while another process deletes it. Raises OSError if nothing can be written there.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    file = open(_mark(entry), "a")  # noqa: SIM115  # the caller keeps it open
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(file.fileno())
    return file


def prune(days: float = DAYS, most: int = BYTES) -> list[Path]:
    """Delete entries that were last used more than `days` ago, and the oldest while all are more than `most` bytes.

    Returns what was deleted. Errors of the disk are passed over: a cache that cannot be pruned still works. On Windows,
    where nothing says what is in use, nothing is deleted. A clock that jumps ahead deletes nothing at once, see `_now`.
    """
    if not fcntl:
        return []
    _mark_earlier()
    entries = sorted(_entries(), key=_last_use)
    total, oldest = sum(map(_size, entries)), _now() - days * 86400
    deleted = []
    for entry in entries:
        size = _size(entry)
        if (_last_use(entry) < oldest or total > most) and _delete(entry):
            total -= size
            deleted.append(entry)
    return deleted


def _now() -> float:
    """Return the time by which entries are old: at most GAP days after the last pruning, and note it.

    Else a clock that jumps ahead would make all entries old at once. Before the first pruning nothing is old.
    """
    note = cache_folder() / PRUNED
    try:
        last = note.stat().st_mtime if note.exists() else 0.0
        now = min(time.time(), last + GAP * 86400) if last else time.time()
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        os.utime(note, (now, now))
        return now if last else 0.0
    except OSError:
        return 0.0


def _entries() -> Iterator[Path]:
    for folder in FOLDERS:
        found = cache_folder() / folder
        if found.is_dir():
            yield from (path for path in found.iterdir() if _mark(path).is_file())  # others are not of this cache


def _mark_earlier() -> None:
    """Mark entries that an earlier version wrote without a mark as used now: they are deleted if nobody uses them."""
    for folder in FOLDERS:
        found = cache_folder() / folder
        for path in found.iterdir() if found.is_dir() else ():
            if NAME.fullmatch(path.name) and not _mark(path).exists() and _is_own(path):
                with contextlib.suppress(OSError):
                    in_use(path).close()


def _is_own(path: Path) -> bool:
    """Whether a file or folder with an entry's name holds what an entry holds: somebody may have others there."""
    with contextlib.suppress(OSError, sqlite3.Error):
        if path.is_dir():
            names = {file.name for file in path.iterdir()}
            return (
                names == {"note.json", "rows.arrow"} and {"examples", "digest"} <= read_note(path / "note.json").keys()
            )
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            return base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("tokens",)]
    return False


def _mark(entry: Path) -> Path:
    return Path(f"{entry}{USED}")


def _last_use(entry: Path) -> float:
    try:
        return _mark(entry).stat().st_mtime
    except FileNotFoundError:  # another process has deleted it
        return 0.0


def _size(entry: Path) -> int:
    try:
        files = entry.rglob("*") if entry.is_dir() else [entry]
        return sum(file.stat().st_size for file in files if file.is_file())
    except FileNotFoundError:  # another process has deleted it
        return 0


def _delete(entry: Path) -> bool:
    """Delete an entry, unless it is in use."""
    try:
        with open(_mark(entry), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
            return True
    except OSError:  # BlockingIOError if it is in use
        return False

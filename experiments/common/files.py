"""Write files and folders whole or not at all: text, JSON, JSON lines."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from experiments.common.errors import ConfigError, DamagedError

PART = ".part"  # ending of a temporary file
UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(UMASK)


def read_text(path: Path) -> str:
    """Read a text file that a user wrote: UTF-8, with a byte order mark at its start or without.

    Raises UnicodeDecodeError, also for a NUL: a text has none, but UTF-16 has one next to each Latin letter.
    """
    data = path.read_bytes()
    if (at := data.find(0)) >= 0:
        raise UnicodeDecodeError("utf-8", data, at, at + 1, "a NUL, as in UTF-16: save it as UTF-8")
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()


def parse_json(text: str | bytes, once: bool = False) -> Any:
    """Parse a text. Raises ValueError if it is no JSON, is not UTF-8, or is nested too deep.

    once: also if an object has a key twice, of which the first would be lost.
    """
    try:
        if once and isinstance(text, str) and not text.startswith("\ufeff"):
            return ONCE.decode(text)
        return json.loads(text, object_pairs_hook=_once if once else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"an object has the key {repeated(key for key, _ in pairs)!r} twice")
    return made


ONCE = json.JSONDecoder(object_pairs_hook=_once)  # `json.loads` makes a decoder for each call


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is there a second time; None if all differ."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1.

    `str.splitlines` would also split at U+2028 and others, which JSON strings may contain.
    """
    return ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Replace a file by a text in UTF-8, with `write_bytes`."""
    write_bytes(path, text.encode(), private)


def write_bytes(path: Path, data: bytes, private: bool = False) -> None:
    """Replace a file as a whole, with `replacing`. What is no file (/dev/stdout, a pipe) is written to, and stays."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replacing(path, private) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[IO[bytes]]:
    """Give a file to fill, which then replaces the one at a path. A kill or a power cut leaves one or the other.

    It is next to the path, flushed to disk, and renamed. private: only the owner may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_suffix(os.getpid()))
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600 if private else 0o666 & ~UMASK)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def part_folder(near: Path) -> Iterator[Path]:
    """Give an empty folder next to a path, which is removed after the block.

    Each process has its own: two that write one folder would mix their files. Those of killed processes are removed.
    """
    near.parent.mkdir(parents=True, exist_ok=True)
    _sweep(near.parent.glob(f".{glob.escape(near.name)}{_suffix('*')}"))
    part = near.with_name(f".{near.name}{_suffix(os.getpid())}")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process that had the same id
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(to: Path, option: str = "--to") -> Iterator[Path]:
    """Give a folder to fill, which gets its name when the block has ended, and is removed if it fails.

    to: not there, or empty. Raises ConfigError, which names the option, if another process has written it meanwhile.
    """
    with part_folder(to) as part:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise ConfigError(f"{option} {to} appeared meanwhile, written by another process: name a new folder")
        os.replace(part, to)


def link_files(folder: Path, to: Path | None) -> bool:
    """Put hard links to all files of a folder into another one: a second name, no second copy. Old files are replaced.

    A file that is replaced later, as `replacing` does, leaves the other name as it was. Returns False, with no link
    left, if that cannot be done: no folder, another disk, a disk without links, or links among the files.
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    if to is None or any(path.is_symlink() for path in files):
        return False
    made: list[Path] = []
    try:
        for file in files:
            target = to / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and target.samefile(file):
                continue
            part = target.with_name(f".{target.name}.{_suffix(os.getpid())}")
            part.unlink(missing_ok=True)
            os.link(file, part)
            os.replace(part, target)
            made.append(target)
    except OSError:
        for target in made:
            target.unlink(missing_ok=True)
        return False
    return True


def leads_away(file: Path, folder: Path) -> bool:
    """Whether a file below a folder is a link to elsewhere: of a folder of others, maybe to a private file.

    The caches of the Hugging Face Hub are full of links to their own blobs, which do not count.
    """
    target = file.resolve()
    of_hub = target.parent.name == "blobs" and target.parents[1].name.startswith(("models--", "datasets--"))
    return not (of_hub or target.is_relative_to(folder.resolve()))


def remove(folder: Path, near: Path) -> None:
    """Delete a folder at once: a kill leaves all of it, or nothing that looks like it.

    Of one that was deleted in part, what is left could be read as another's. near: see `part_folder`; on its disk.
    """
    try:
        with part_folder(near) as gone:
            os.replace(folder, gone / folder.name)
    except OSError:  # a folder of another disk
        if folder.exists():
            shutil.rmtree(folder)


def sweep(folder: Path) -> None:
    """Delete temporary files and folders below a folder that processes of this machine left when they were killed."""
    _sweep(folder.rglob(f".*{_suffix('*')}"))


def _sweep(found: Iterable[Path]) -> None:
    for path in list(found):
        pid = path.name.rpartition("-")[2].removesuffix(PART)
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _suffix(pid: int | str) -> str:
    space = pid_namespace().rpartition("[")[2].removesuffix("]")  # a container may have the host's name
    return f"-{socket.gethostname()}-{space}-{pid}{PART}" if space else f"-{socket.gethostname()}-{pid}{PART}"


def pid_namespace() -> str:
    """Return the id of the namespace in which this process has its id, or an empty text."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, with `write_text`."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str = "bring it back, or delete it to have it made again") -> dict[str, Any]:
    """Read the object that `write_json` wrote; an empty dict if there is no file.

    advice: what to do about a damaged file. Raises DamagedError, which names it.
    """
    if not path.is_file():
        return {}
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or UTF-8
        raise DamagedError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(values, dict):
        raise DamagedError(f"{path} is damaged (it holds no JSON object): {advice}")
    return values


def read_note(path: Path) -> dict[str, Any]:
    """Read a file that can be made again: an empty dict if it is damaged or not there."""
    try:
        return read_json(path)
    except DamagedError:
        return {}


def is_damaged(note: Path) -> bool:
    """Whether a note is there and cannot be read: what it vouches for is not known to be whole."""
    try:
        read_json(note)
    except DamagedError:
        return True
    return False

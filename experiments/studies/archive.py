"""Open the file of a study's trials, which somebody else may have made: its size and its names are bounded.

`trials.tar.xz` has `trials.json` and files of run folders. A file of a few kilobytes can unpack to any size, and its
members can have any name: everything is checked while it is read, before a file is written.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import parse_json
from experiments.common.paths import short_path

FILE, TRIALS = "trials.tar.xz", "trials.json"
KEPT = (
    *("config.yaml", "sources.json", "base/*.json", "base/*.jsonl", "arms/*/*.json", "arms/*/items-*.jsonl"),
    *("posthoc/*/result.json", "posthoc/*/items-*.jsonl"),
)
LEFT_OUT = ("mlflow.json", ".delivered.json")  # of this machine's MLflow
MOST = 4 * 2**30  # bytes after unpacking
AT_ONCE = 2**29  # bytes in memory: of trials.json, or of a member's header
MEMBERS = 10**6
LONGEST = 255  # bytes of a file's name


class Bounded:
    """A file object of an unpacked stream that refuses to unpack more than MOST bytes, or to hold AT_ONCE in memory."""

    def __init__(self, stream: lzma.LZMAFile) -> None:
        self.stream, self.tell = stream, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= AT_ONCE:
            raise ValueError(f"it holds {size >> 20} MB in one piece")
        _check_size(self.tell() + size)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        _check_size(position)
        return self.stream.seek(position)


class Archive:
    """The members of the file: `trials`, and `files` by their names, which are below `runs`."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar, self.files = tar, dict[str, tarfile.TarInfo]()
        for member in _members(tar):
            if member.name in self.files:
                raise ValueError(f"it has {member.name!r} twice")
            self.files[member.name] = member
        self.member = self.files.pop(TRIALS)

    @property
    def trials(self) -> Any:
        return parse_json(self._open(self.member).read())

    @property
    def runs(self) -> set[str]:
        """Return the run folders, `runs/NAME`."""
        return {run_of(name) for name in self.files}

    def values(self, name: str) -> Any:
        """Return what a JSON member holds. Raises KeyError without it."""
        return parse_json(self.text(name))

    def text(self, name: str) -> str:
        """Return the text of a member. Raises KeyError without it."""
        return self._open(self.files[name]).read().decode()

    def unpack(self, name: str, folder: Path) -> None:
        """Write a member below a folder."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(self._open(self.files[name]), file)

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        file = self.tar.extractfile(member)
        assert file is not None  # a regular file
        return file


@contextlib.contextmanager
def open_archive(folder: Path) -> Iterator[Archive]:
    """Open the file of a folder. Raises ConfigError if there is none, DamagedError if it is not one of ours."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"--from {short_path(folder)}: there is no {FILE}; `control-llm report STUDY --out FOLDER` writes one"
        )
    try:
        with lzma.open(path) as stream, tarfile.open(fileobj=Bounded(stream), mode="r:") as tar:  # type: ignore[call-overload]
            yield Archive(tar)
    except (EOFError, tarfile.TarError, lzma.LZMAError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigError | DamagedError):
            raise
        reason = str(error).partition("\n")[0]
        raise DamagedError(
            f"{short_path(path)} cannot be read: {reason}. Bring it back whole, or leave out --from"
        ) from error


def run_of(name: str) -> str:
    """Return the run folder of a member, `runs/NAME`; an empty text for a member that `write_trials` never writes."""
    parts = name.split("/")
    if parts[0] != "runs" or len(parts) < 3 or {"", ".", ".."} & set(parts) or name.endswith(LEFT_OUT):
        return ""
    if max(len(part.encode()) for part in parts) > LONGEST:
        return ""
    rest = PurePosixPath(*parts[2:])
    kept = any(len(parts) == 3 + pattern.count("/") and rest.match(pattern) for pattern in KEPT)
    return "/".join(parts[:2]) if kept else ""


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; each is checked before the next header is sought behind it."""
    total = 0
    for count, member in enumerate(tar):
        total += member.size
        _check_size(total)
        plain = member.isreg() and not member.issparse() and member.size >= 0
        if not plain or not (member.name == TRIALS or run_of(member.name)):
            raise ValueError(f"it was not written by `control-llm report`: it has {member.name!r}")
        if count >= MEMBERS:
            raise ValueError(f"it has more than {MEMBERS} members")
        yield member


def _check_size(size: int) -> None:
    if size > MOST:
        raise ValueError(f"it unpacks to more than {MOST >> 30} GB")

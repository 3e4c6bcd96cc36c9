"""SHA-256 digests as hex digits: ids of items, names of folders, and checks that data has not changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

BLOCK, BLOCKS = 4096, 1024  # bytes of a large file that `file_stamp` reads at once, and how often
BLOCKS_ONCE = 16  # in earlier versions
WHOLE = 2**24  # bytes of a file that is read as a whole: a tenth of a second


def sha256(text: str) -> str:
    """Return the 64 hex digits of the text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def text_id(text: str) -> str:
    """Return the first 12 digits: the same question or document has the same id in every run."""
    return sha256(text)[:12]


def short_digest(*texts: str) -> str:
    """Return the first 16 digits of all texts, with a zero byte after each. Unpaired surrogates are allowed."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def json_digest(value: Any) -> str:
    """Return the 64 hex digits of a value as JSON with sorted keys; what JSON cannot hold counts as its `str`."""
    return sha256(json.dumps(value, sort_keys=True, default=str))


def file_digest(path: Path) -> str:
    """Return the 64 hex digits of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file in a folder by its name; nothing without a folder. Raises OSError."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: file_digest(path) for path in files if path.is_file()}


def same_file(path: Path, digest: str) -> bool:
    """Whether a file is there and has this digest."""
    return path.is_file() and file_digest(path) == digest


def file_stamp(path: Path, blocks: int = BLOCKS) -> list[Any]:
    """Return size, modification time and a digest of the bytes: cheap, and new if the file is another.

    Size and time alone are equal for weights of one shape in images and archives with fixed times. Of a file above
    WHOLE the digest is of samples: any change in one piece of a thousandth of the file is seen. Raises OSError.
    """
    known = path.stat()
    whole = known.st_size <= WHOLE and blocks == BLOCKS
    return [known.st_size, known.st_mtime_ns, file_digest(path) if whole else _sampled(path, known.st_size, blocks)]


def cache_stamp(path: Path) -> list[Any]:
    """Return `file_stamp` and the time at which the system saw the last change, which no program can set.

    For caches on this machine: a copy of a file is another one, which costs time alone. Raises OSError.
    """
    return [*file_stamp(path), path.stat().st_ctime_ns]


def _sampled(path: Path, size: int, blocks: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(blocks):
            file.seek(i * max(size - BLOCK, 0) // (blocks - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()

"""SHA-256 digests as hex digits: ids of items, names of folders, and checks that data has not changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

BLOCK, BLOCKS = 4096, 16  # bytes of a file that `file_stamp` reads at once, and how often


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


def same_file(path: Path, digest: str) -> bool:
    """Whether a file is there and has this digest."""
    return path.is_file() and file_digest(path) == digest


def file_stamp(path: Path) -> list[Any]:
    """Return size, modification time and the digest of 64 kB spread over a file: cheap, and new if the file is another.

    Size and time alone are equal for weights of one shape in images and archives with fixed times. Raises OSError.
    """
    known, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        for i in range(BLOCKS):
            file.seek(i * max(known.st_size - BLOCK, 0) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return [known.st_size, known.st_mtime_ns, digest.hexdigest()]

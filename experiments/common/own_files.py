"""Tell files that a command wrote earlier from others of the same name, which it must not replace without a word."""

from __future__ import annotations

import re
from pathlib import Path

BEGINNING = 1 << 20  # bytes that are searched for a mark


def is_own(path: Path, mark: str) -> bool:
    """Whether a file can be replaced: it has the mark of the command's own files, is empty, or is no file at all.

    mark: a regular expression; only the beginning of the file is searched.
    """
    if not path.is_file():  # also /dev/stdout and pipes, which are written to and stay
        return True
    with path.open("rb") as file:
        text = file.read(BEGINNING).decode("utf-8", errors="replace")
    return re.search(mark, text) is not None or not text.strip(' "\r\n')

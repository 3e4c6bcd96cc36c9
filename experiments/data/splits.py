"""Find by the names of files which are of one split of a data set, and say if several are trained on together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

LEARNED = "train"
SPLITS = {
    LEARNED: ("train", "training"),
    "test": ("test", "tests", "testing"),
    "validation": ("validation", "valid", "val"),
    "dev": ("dev", "devel", "development"),
    "eval": ("eval", "evaluation"),
    "holdout": ("holdout", "heldout"),
}
BY_WORD = {word: split for split, words in SPLITS.items() for word in words}


def splits_of(file: Path) -> set[str]:
    """Return the splits that the words of a file's name and of its folders name: `test` of `chats/testData.jsonl`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(file)).lower()
    words = re.sub(r"\b(held|hold)[-_ ]out", r"\1out", words.replace("_", " "))
    return {BY_WORD[word] for word in re.split(r"[^a-z]+", words) if word in BY_WORD}


def said_together(files: Sequence[Path]) -> Iterator[str]:
    """Say if files are of several splits, or some of a split that is kept for tests: all are trained on."""
    found = [splits_of(file) for file in files]
    names, bare = sorted(set().union(*found)), not all(found)
    if len(names) > 1 or (bare and set(names) - {LEARNED}):
        others = " and others" if bare else ""
        yield f"trained on together: the files of {', '.join(names)}{others}; for one of them alone, name its path"

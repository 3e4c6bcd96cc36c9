"""What is learned from and measured on: a question with its answer, a text, and a new task made of either."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\d[\d,]*(?:\.\d+)?")
Scorer = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True)
class Item:
    """One question and its answer. metadata: what the generator's verifier wants besides."""

    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def id(self) -> str:
        """Twelve hex digits of the question's SHA-256: the same item has the same id in every run."""
        return hashlib.sha256(self.question.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class NewTask:
    """Items to measure a new task on. scorer: the generator's verifier, (answer, entry) -> marks in [0, 1]."""

    name: str
    test: tuple[Item, ...]
    scorer: Scorer = field(compare=False, repr=False)

    @functools.cached_property
    def numeric(self) -> bool:
        """Whether every answer is a number, so that a number is what is read out of a reply."""
        return all(NUMBER.fullmatch(item.answer.strip()) for item in self.test)

    def correct(self, answer: str | None, item: Item) -> bool:
        """Full marks of the generator's own verifier; None (nothing could be read) is wrong."""
        if answer is None:
            return False
        entry = {"question": item.question, "answer": item.answer, "metadata": dict(item.metadata)}
        return self.scorer(answer, entry) >= 1.0


@dataclass(frozen=True)
class NewText:
    """Documents to measure a new domain on: how well each is predicted."""

    name: str
    documents: tuple[str, ...]

"""What is learned from and measured on: a question with its answer, a text, and a new task made of either."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from experiments.common.hashing import text_id

WHOLE = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")  # commas between thousands only
NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\d[\d,]*(?:\.\d+)?")
Scorer = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True)
class Item:
    """One question and its answer.

    solution: worked steps that lead to the answer; where there are any, training writes them before it. ended: False
    for a reply that was cut off, which gets no end of turn. metadata: what the generator's verifier wants besides.
    """

    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    solution: str = ""
    ended: bool = True

    @property
    def id(self) -> str:
        """Twelve hex digits of the question's SHA-256: the same item has the same id in every run."""
        return text_id(self.question)

    @property
    def reply(self) -> str:
        """What a model is trained to say: the worked solution, if there is one, and the answer as its last line."""
        return f"{self.solution}\nAnswer: {self.answer}" if self.solution else self.answer


@dataclass(frozen=True)
class Text:
    """One document. group: what is held out as a whole (a module); ended: False where its end was cut off."""

    text: str
    group: str = ""
    ended: bool = True

    @property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 of the group, or of the text where it stands alone."""
        return text_id(self.group or self.text)


Example = Item | Text


@dataclass(frozen=True)
class NewTask:
    """Items to measure a new task on. scorer: the generator's verifier, (answer, entry) -> marks in [0, 1]."""

    name: str
    test: tuple[Item, ...]
    scorer: Scorer = field(compare=False, repr=False)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the items that must not be trained on."""
        return frozenset(item.id for item in self.test)

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
    """Documents to measure a new kind of text on, as nats per token.

    groups: ids of whole groups (modules) that are held out, where documents are split by group.
    """

    name: str
    documents: tuple[str, ...]
    groups: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the documents that must not be trained on."""
        return self.groups or frozenset(text_id(document) for document in self.documents)


def exact_match(answer: str, entry: Mapping[str, Any]) -> float:
    """1.0 if a reply, or its last line, is the answer; case, spaces, thousands commas and a final stop do not count."""
    lines = [line for line in answer.splitlines() if line.strip()] or [""]
    wanted = _normal(str(entry["answer"]))
    return float(wanted in (_normal(answer), _normal(lines[-1].removeprefix("Answer:"))))


def _normal(text: str) -> str | Decimal:
    """A number as such, so that 7 is 7.0; "1,2" is a list and no number."""
    text = " ".join(text.casefold().split()).rstrip(".")
    return Decimal(text.replace(",", "")) if WHOLE.fullmatch(text) else text

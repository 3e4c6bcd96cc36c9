"""Facts about invented people, places and products: knowledge that has to be stored, and that no base model has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.data.invented import KINDS, Subject, invent, names_of
from experiments.data.items import Example, Item, NewTask, Text
from experiments.data.matching import exact_match
from experiments.data.source import Source

Kind = Literal["people", "places", "products"]


class Facts(Source):
    """Questions about invented subjects with four attributes each, all drawn independently.

    Each fact is trained on in three ways of asking, and measured in a fourth: a model that has only learned the
    questions by heart fails. The subjects depend on the seed of the run.

    `texts`: descriptions of the subjects, worded differently in each epoch. `both`: texts about all subjects, and
    questions about the first half of each kind; the other half is measured, as with the controlled biographies of
    arXiv 2309.14316.
    """

    source: Literal["facts"] = "facts"
    kinds: tuple[Kind, ...] = Field(("people",), min_length=1, description="what is invented: people, places, products")
    number: int = Field(80, ge=2, le=100_000, description="subjects of each kind; each has four facts")
    train: Literal["questions", "texts", "both"] = Field(
        "questions", description="train on questions, on texts about the subjects, or on both"
    )

    @model_validator(mode="after")
    def _enough_names(self) -> Facts:
        fewest = min(self.kinds, key=names_of)
        if self.number > names_of(fewest):
            raise ValueError(
                f"number={self.number}: there are {names_of(fewest)} names of {fewest}, give that or fewer"
            )
        return self

    @property
    def label(self) -> str:
        return f"facts about {' and '.join(self.kinds)}"

    @property
    def size(self) -> int:
        return sum(1 for _ in self._examples(self._subjects(0), random.Random(0)))

    def digest(self) -> str:
        return short_digest(super().digest(), repr(KINDS))

    def held_out(self, count: int, seed: int) -> NewTask:
        """Return `count` facts in the way of asking that is not trained on. Raises ConfigError if there are fewer."""
        items = [item for subject in self._measured(seed) for item in _asked(subject, slice(3, 4))]
        if count > len(items):
            raise ConfigError(
                f"source {self.label} has {len(items)} facts to measure, but {count} are to be held out: set "
                "evaluation.new_items below that, or raise number"
            )
        items.sort(key=lambda item: short_digest(f"{seed} {item.id}"))
        return NewTask(self.label, tuple(items[:count]), exact_match, invented=True)

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        rng = random.Random(f"epoch {number} {seed}")
        examples = [e for e in self._examples(self._subjects(seed), rng) if e.id not in held_out_ids]
        rng.shuffle(examples)
        return iter(examples)

    def _examples(self, subjects: list[list[Subject]], rng: random.Random) -> Iterator[Example]:
        for kind in subjects:
            asked = {"questions": kind, "texts": [], "both": kind[: len(kind) // 2]}[self.train]
            yield from (item for subject in asked for item in _asked(subject, slice(0, 3)))
            if self.train != "questions":
                yield from (Text(subject.text(rng), group=subject.name) for subject in kind)

    def _measured(self, seed: int) -> Iterator[Subject]:
        for kind in self._subjects(seed):
            yield from kind[len(kind) // 2 :] if self.train == "both" else kind

    def _subjects(self, seed: int) -> list[list[Subject]]:
        return [invent(kind, self.number, seed) for kind in dict.fromkeys(self.kinds)]


def _asked(subject: Subject, ways: slice) -> Iterator[Item]:
    for attribute, value in subject.facts:
        for question in attribute.asked[ways]:
            yield Item(question.format(subject.name), value)

"""The contract of a source of data."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import Section
from experiments.data.items import Example, Item, NewTask, NewText, Text, is_held_out
from experiments.data.matching import exact_match
from experiments.data.stored import Stored
from experiments.data.unread import SHAPE

One = TypeVar("One")


@dataclass(frozen=True)
class SourceContext:
    """Facts of the run that a source may need besides its settings.

    base: returns the base model; called only if a source needs it. base_model: its name or folder. precision: as in
    the config. cache: folder for sampled text. loaded: how the config asks to load the base otherwise than by default
    (`4bit`, `eager`): what such a base writes and scores is kept apart.
    """

    tokenizer: PreTrainedTokenizerBase
    base: Callable[[], PreTrainedModel]
    base_model: str
    precision: str
    cache: Path
    loaded: str = ""

    @property
    def otherwise(self) -> dict[str, str]:
        """`loaded`, for keys of caches; nothing by default, so that earlier ones hold."""
        return {"loaded": self.loaded} if self.loaded else {}


class Source(Section):
    """Base of all sources. A source is its own section of the YAML: its fields are the settings.

    What is drawn depends only on the fields and a seed. Held-out examples are never in the training stream.
    """

    source: str = Field(description="kind of source")
    share: float = Field(1.0, gt=0, le=1, description="share of its side (new or old) in tokens")

    @property
    def label(self) -> str:
        """Name of the source in tables and records."""
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """Number of examples; None if it is endless or not known."""
        return None

    @property
    def streamed(self) -> bool:
        """Whether its rows are read as they are needed, and not kept."""
        return False

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be used are passed over and counted."""
        return False

    @property
    def recognised(self) -> str:
        """What a row of the data is, in a few words; empty for a source without rows."""
        return ""

    @property
    def notes(self) -> list[str]:
        """What was not read of the data, one line each. A run says it when it starts."""
        return []

    @property
    def test_notes(self) -> list[str]:
        """What was not read of a test set of its own, one line each. A run says it too."""
        return []

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples to measure on. A larger count only adds examples at the end."""
        raise NotImplementedError

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        """Return the examples of one pass, in the order of this pass, without those whose id is in `held_out_ids`."""
        raise NotImplementedError

    @property
    def table(self) -> Stored | None:
        """Its examples on disk, if it is a large table; `order` then returns their numbers in place of `epoch`."""
        return None

    def order(self, number: int, seed: int, held_out_ids: frozenset[str]) -> list[int]:
        """Return the numbers of the examples of one pass in the table, in the order of `epoch`."""
        raise NotImplementedError

    def stored(self) -> Iterable[Example]:
        """Return all examples, in the order in which they are stored; nothing if the source makes them."""
        return ()

    def digest(self) -> str:
        """Return sixteen hex digits that change when the data changes."""
        return short_digest(self.model_dump_json(exclude={"share"}))

    @property
    def origin(self) -> str:
        """A digest of the files behind a source whose `digest` does not cover their content; empty if it does."""
        return ""

    def materialise(self, context: SourceContext) -> Source:
        """Return the source to draw from: itself, unless its data must be made first."""
        return self

    def stream(self, seed: int, held_out_ids: frozenset[str]) -> Iterator[tuple[int, Example]]:
        """Yield (epoch, example) without end: a finite source starts again in another order."""
        return self.without_end(lambda number: self.epoch(number, seed, held_out_ids), len(held_out_ids))

    def without_end(self, epoch: Callable[[int], Iterator[One]], held_out: int) -> Iterator[tuple[int, One]]:
        """Yield (number, one) of epoch(0), epoch(1) ... without end. Raises ConfigError if one is empty."""
        for number in itertools.count():
            empty = True
            for one in epoch(number):
                empty = False
                yield number, one
            if empty:
                raise ConfigError(
                    f"source {self.label}: nothing is left to train on besides {held_out} held-out items: "
                    "lower evaluation.new_items, or give it more data"
                )


class Finite(Source):
    """A source whose examples fit in memory, or are a large table on disk.

    A subclass defines `examples`; this class splits and shuffles them.
    """

    @functools.cached_property
    def examples(self) -> Sequence[Example]:
        """All examples in the order in which they are stored. Several may have one id, as rows of one question do."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.examples)

    def stored(self) -> Iterable[Example]:
        return self.examples

    @property
    def table(self) -> Stored | None:
        return self.examples if isinstance(self.examples, Stored) else None

    def digest(self) -> str:
        return self.table.digest if self.table else short_digest(*(repr(example) for example in self.examples))

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples with different ids. Raises ConfigError if nothing would be left to train on.

        All rows of a question that is held out are kept out of training. It is measured by the answer of the first.
        """
        each, documents = len(_measured(self.examples)), len(_beside(self.examples))
        if count >= each:
            different = "" if each == len(self.examples) - documents else " different"
            what = "questions next to documents, which are not measured," if documents else "examples,"
            raise ConfigError(
                f"source {self.label} has {each}{different} {what} but {count} are to be held out: "
                "set evaluation.new_items below that, or give it more data"
            )
        return self.sample(count, seed)

    def sample(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples with different ids to measure on, or all if there are fewer: none is trained on."""
        return as_task(self.label, drawn(self.examples, count, seed)[0])

    def order(self, number: int, seed: int, held_out_ids: frozenset[str]) -> list[int]:
        order = free(self.examples, held_out_ids)
        random.Random(f"epoch {number} {seed}").shuffle(order)
        return order

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        return (self.examples[i] for i in self.order(number, seed, held_out_ids))


def ids_of(examples: Sequence[Example]) -> list[str]:
    """Return the id of each example."""
    return examples.ids if isinstance(examples, Stored) else [example.id for example in examples]


def free(examples: Sequence[Example], held_out_ids: frozenset[str]) -> list[int]:
    """Return the numbers of the examples that are not held out."""
    if isinstance(examples, Stored):
        return examples.free(held_out_ids)
    return [i for i, example in enumerate(examples) if not is_held_out(example, held_out_ids)]


def drawn(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[str]]:
    """Return `count` examples with different ids, or all if there are fewer, and all ids; both in an order by hash.

    Of several examples with one id it is the first, so that a repeated question is not both trained and measured. If
    there are questions, documents are not drawn.
    """
    first = _measured(examples)
    order = sorted(first, key=lambda one: short_digest(f"{seed} {one}"))
    return [examples[first[one]] for one in order[:count]], order


def _measured(examples: Sequence[Example]) -> dict[str, int]:
    """Return the first number of each id that may be measured."""
    left = _beside(examples)
    return {one: number for number, one in reversed(list(enumerate(ids_of(examples)))) if number not in left}


def _beside(examples: Sequence[Example]) -> set[int]:
    """Return the numbers of the documents next to questions. A task has one kind, and these are not measured."""
    if isinstance(examples, Stored) and sum(word.startswith(SHAPE) for word in examples.words) < 2:
        return set()
    documents = {number for number, one in enumerate(examples) if isinstance(one, Text)}
    return documents if len(documents) < len(examples) else set()


def as_task(label: str, drawn: Sequence[Example]) -> NewTask | NewText:
    """Return a task of held-out examples: questions are scored by exact match, texts by their likelihood."""
    items = tuple(example for example in drawn if isinstance(example, Item))
    if items:
        return NewTask(label, items, exact_match)
    return NewText(label, tuple(example.text for example in drawn if isinstance(example, Text)))


def distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return the first example of each id, in their order."""
    return tuple({example.id: example for example in reversed(examples)}.values())[::-1]

"""What every source of data has in common, whatever it draws from."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import Section
from experiments.data.items import Example, Item, NewTask, NewText, Text, exact_match


@dataclass(frozen=True)
class Workshop:
    """What a source may need that its section does not say.

    base: gives the base model; called only if a source has to read or sample it. base_model: its name or folder.
    cache: where sampled text is kept.
    """

    tokenizer: PreTrainedTokenizerBase
    base: Callable[[], PreTrainedModel]
    base_model: str
    precision: str
    cache: Path


class Source(Section):
    """Base of all sources. A source is its own section of the YAML: its fields say what is drawn.

    All that is drawn depends on the fields and a seed alone, and what is held out is never in the training stream.
    """

    source: str
    share: float = Field(1.0, gt=0, le=1, description="share of its side (new or old) in tokens")

    @property
    def label(self) -> str:
        """How tables and records name it."""
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        """How many examples it has; None where there is no end, or none that is known."""
        return None

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """`count` examples to measure on; the first ones are the same for any count."""
        raise NotImplementedError

    def epoch(self, number: int, seed: int, taken: frozenset[str]) -> Iterator[Example]:
        """The examples of one pass, in an order of its own, without those whose id is in `taken`."""
        raise NotImplementedError

    def digest(self) -> str:
        """Sixteen hex digits that change when the data does."""
        return short_digest(self.model_dump_json(exclude={"share"}))

    def ready(self, workshop: Workshop) -> Source:
        """The source to draw from: itself, unless something must be made first."""
        return self

    def stream(self, seed: int, taken: frozenset[str]) -> Iterator[tuple[int, Example]]:
        """(epoch, example) without end: a finite source starts over in another order."""
        number = 0
        while True:
            empty = True
            for example in self.epoch(number, seed, taken):
                empty = False
                yield number, example
            if empty:
                raise ConfigError(
                    f"source {self.label}: nothing is left to train on beside {len(taken)} held-out items: "
                    "lower evaluation.new_items, or give it more data"
                )
            number += 1


class Finite(Source):
    """A source whose examples fit in memory. A subclass gives `examples`; this class splits and shuffles them."""

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        """All examples, each once, in the order in which they are stored."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.examples)

    def digest(self) -> str:
        return short_digest(*(repr(example) for example in self.examples))

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Raises ConfigError where nothing would be left to train on."""
        if count >= len(self.examples):
            raise ConfigError(
                f"source {self.label} has {len(self.examples)} examples, but {count} are to be held out: "
                "set evaluation.new_items below that, or give it more data"
            )
        drawn = sorted(self.examples, key=lambda example: short_digest(f"{seed} {example.id}"))[:count]
        return measured(self.label, drawn)

    def epoch(self, number: int, seed: int, taken: frozenset[str]) -> Iterator[Example]:
        examples = [example for example in self.examples if example.id not in taken]
        random.Random(f"epoch {number} {seed}").shuffle(examples)
        return iter(examples)


def measured(label: str, drawn: Sequence[Example]) -> NewTask | NewText:
    """Held-out examples as what is measured: questions by exact match, texts by their likelihood."""
    items = tuple(example for example in drawn if isinstance(example, Item))
    if items:
        return NewTask(label, items, exact_match)
    return NewText(label, tuple(example.text for example in drawn if isinstance(example, Text)))


def distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The first example of each id, so that a question that stands twice is not both learned and measured."""
    return tuple({example.id: example for example in reversed(examples)}.values())[::-1]

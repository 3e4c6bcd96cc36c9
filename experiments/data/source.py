"""The contract of a source of data."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import Section
from experiments.data.items import Example, Item, NewTask, NewText, Text, exact_match, is_held_out


@dataclass(frozen=True)
class SourceContext:
    """Facts of the run that a source may need besides its settings.

    base: returns the base model; called only if a source needs it. base_model: its name or folder. precision: as in
    the config. cache: folder for sampled text.
    """

    tokenizer: PreTrainedTokenizerBase
    base: Callable[[], PreTrainedModel]
    base_model: str
    precision: str
    cache: Path


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
    def recognised(self) -> str:
        """What a row of the data is, in a few words; empty for a source without rows."""
        return ""

    @property
    def notes(self) -> list[str]:
        """What was not read of the data, one line each. A run says it when it starts."""
        return []

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples to measure on. A larger count only adds examples at the end."""
        raise NotImplementedError

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        """Return the examples of one pass, in the order of this pass, without those whose id is in `held_out_ids`."""
        raise NotImplementedError

    def stored(self) -> Iterable[Example]:
        """Return all examples, in the order in which they are stored; nothing if the source makes them."""
        return ()

    def digest(self) -> str:
        """Return sixteen hex digits that change when the data changes."""
        return short_digest(self.model_dump_json(exclude={"share"}))

    def materialise(self, context: SourceContext) -> Source:
        """Return the source to draw from: itself, unless its data must be made first."""
        return self

    def stream(self, seed: int, held_out_ids: frozenset[str]) -> Iterator[tuple[int, Example]]:
        """Yield (epoch, example) without end: a finite source starts again in another order."""
        number = 0
        while True:
            empty = True
            for example in self.epoch(number, seed, held_out_ids):
                empty = False
                yield number, example
            if empty:
                raise ConfigError(
                    f"source {self.label}: nothing is left to train on besides {len(held_out_ids)} held-out items: "
                    "lower evaluation.new_items, or give it more data"
                )
            number += 1


class Finite(Source):
    """A source whose examples fit in memory. A subclass defines `examples`; this class splits and shuffles them."""

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        """All examples in the order in which they are stored. Several may have one id, as rows of one question do."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.examples)

    def stored(self) -> Iterable[Example]:
        return self.examples

    def digest(self) -> str:
        return short_digest(*(repr(example) for example in self.examples))

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples with different ids. Raises ConfigError if nothing would be left to train on.

        All rows of a question that is held out are kept out of training. It is measured by the answer of the first.
        """
        each = distinct(self.examples)
        if count >= len(each):
            different = "" if len(each) == len(self.examples) else " different"
            raise ConfigError(
                f"source {self.label} has {len(each)}{different} examples, but {count} are to be held out: "
                "set evaluation.new_items below that, or give it more data"
            )
        return self.sample(count, seed)

    def sample(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples with different ids to measure on, or all if there are fewer: none is trained on."""
        each = distinct(self.examples)
        drawn = sorted(each, key=lambda example: short_digest(f"{seed} {example.id}"))[:count]
        return as_task(self.label, drawn)

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        examples = [example for example in self.examples if not is_held_out(example, held_out_ids)]
        random.Random(f"epoch {number} {seed}").shuffle(examples)
        return iter(examples)


def as_task(label: str, drawn: Sequence[Example]) -> NewTask | NewText:
    """Return a task of held-out examples: questions are scored by exact match, texts by their likelihood."""
    items = tuple(example for example in drawn if isinstance(example, Item))
    if items:
        return NewTask(label, items, exact_match)
    return NewText(label, tuple(example.text for example in drawn if isinstance(example, Text)))


def distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return the first example of each id, so that a repeated question is not both trained and measured."""
    return tuple({example.id: example for example in reversed(examples)}.values())[::-1]

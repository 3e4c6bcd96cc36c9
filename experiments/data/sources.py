"""Where data comes from. A source is its own section of the YAML: its fields say what is drawn."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from ctrl.errors import unknown_name
from experiments.data.items import Item, NewTask
from experiments.section import ConfigError, Section


class Source(Section):
    """Base of all sources: endless training items, and held-out ones to measure on, both fixed by the seed."""

    share: float = Field(1.0, gt=0, le=1, description="share of its side (new or old) in tokens")

    @property
    def label(self) -> str:
        """How tables and records name it."""
        raise NotImplementedError

    def train(self, seed: int, held_out: int) -> Iterator[Item]:
        """Items to learn from, none of them among the first `held_out` held-out ones."""
        raise NotImplementedError

    def held_out(self, count: int, seed: int) -> NewTask:
        """`count` items to measure on; the first ones are the same for any count."""
        raise NotImplementedError


class ReasoningGym(Source):
    """A procedural generator of reasoning_gym by name, with its own parameters."""

    source: Literal["reasoning_gym"] = "reasoning_gym"
    name: str = "chain_sum"
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name

    def train(self, seed: int, held_out: int) -> Iterator[Item]:
        taken = {item.question for item in self.held_out(held_out, seed).test}
        return _distinct(_generators(self)("train", seed), taken, self.name, "training")

    def held_out(self, count: int, seed: int) -> NewTask:
        generator = _generators(self)("test", seed)
        items = itertools.islice(_distinct(generator, set(), self.name, "test"), count)
        return NewTask(self.name, tuple(items), generator.score_answer)


SOURCES: dict[str, type[Source]] = {"reasoning_gym": ReasoningGym}


def _generators(config: ReasoningGym) -> Callable[[str, int], Any]:
    from reasoning_gym.factory import DATASETS  # seconds to import

    if config.name not in DATASETS:
        raise ConfigError(f"data.new, name: {unknown_name('task', config.name, sorted(DATASETS))}")
    dataset_class, config_class = DATASETS[config.name]
    own = ("seed", "size")
    known = [f.name for f in dataclasses.fields(config_class) if f.name not in own]
    wrong = [unknown_name("parameter", key, known) for key in config.params if key not in known]
    if wrong:
        raise ConfigError(f"data.new, params of {config.name}: " + "; ".join(wrong))

    def generator(part: str, seed: int) -> Any:
        # Generators add the index to the seed, so neighbouring seeds share items: these lie far apart.
        start = random.Random(f"{part} {seed}").randrange(2**30)
        try:
            settings = config_class(**config.params, seed=start, size=2**30)
            settings.validate()
            return dataset_class(settings)
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(
                f"data.new, params of {config.name}: {config.params} is refused by the generator: {reason}"
            ) from error

    return generator


def _distinct(generator: Any, taken: set[str], name: str, part: str) -> Iterator[Item]:
    """Items with distinct questions outside `taken`. Raises ConfigError after 2,000 draws without a new one."""
    seen, since = set(taken), 0
    for index in itertools.count():
        entry = generator[index]
        since += 1
        if entry["question"] not in seen:
            seen.add(entry["question"])
            since = 0
            yield Item(entry["question"], str(entry["answer"]), entry["metadata"])
        elif since > 2000:
            raise ConfigError(
                f"task {name} has too few distinct questions: only {len(seen) - len(taken)} {part} items were found "
                f"beside the {len(taken)} held out. Widen its params, or ask for fewer steps or evaluation.new_items"
            )

"""Procedural tasks: any generator of reasoning_gym, by name and parameters."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import MAX_SEED, Section, later_field
from experiments.data.isolated import Isolated
from experiments.data.items import Example, Item, NewTask, Scorer
from experiments.data.rights import ALLOWED, supported
from experiments.data.source import Source
from experiments.data.verifiers import guarded, runs_replies, short
from experiments.data.versions import other_versions

CHUNK = 100_000  # indices drawn from one generator; some build a list of their whole size at once
PATIENCE = 2000  # draws without a new question before the task counts as exhausted
FINAL = "####"  # begins the last line of gsm_symbolic's worked answers


class OtherQuestions(Section):
    """The test set of a generator: other parameters, or the same questions for all seeds of a run."""

    params: dict[str, Any] = Field(default_factory=dict, description="parameters that differ from those of training")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="of the test questions; default: the run's")


class ReasoningGym(Source):
    """A procedural generator of reasoning_gym by name, with its own parameters.

    The default is grade-school mathematics with worked answers. Questions are distinct and endless, unless the
    parameters allow only a few; an exhausted generator is an error.
    """

    source: Literal["reasoning_gym"] = "reasoning_gym"
    name: str = Field("gsm_symbolic", description="generator of reasoning_gym")
    params: dict[str, Any] = Field(default_factory=dict, description="the generator's own parameters")
    question: str | None = Field(None, description="text of a question, with {fields} of the metadata")
    run_code: bool = later_field(
        False, description="allow tasks whose verifier runs replies as code; it does so in a process without rights"
    )
    test: OtherQuestions | None = later_field(
        None, description="test questions of other parameters ({params: {...}}), or of a fixed seed ({seed: 0})"
    )
    worked: bool = Field(True, description="train on the worked answer, if the generator has one (gsm_symbolic)")

    @property
    def label(self) -> str:
        return self.name

    def digest(self) -> str:
        return short_digest(super().digest(), importlib.metadata.version("reasoning_gym"))

    def held_out(self, count: int, seed: int) -> NewTask:
        make = _generators(self)
        if self.test:
            make = _generators(self.model_copy(update={"params": {**self.params, **self.test.params}}))
            seed = seed if self.test.seed is None else self.test.seed
        items = tuple(itertools.islice(self._distinct(make, "test", seed, frozenset()), count))
        verifier = self._verifier(make("test", seed, 0).score_answer, items[0])
        return NewTask(self.name, items, verifier, verifier=" ".join(other_versions("reasoning_gym")))

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        return self._distinct(_generators(self), "train", seed, held_out_ids)

    def _distinct(
        self, make: Callable[[str, int, int], Any], part: str, seed: int, held_out_ids: frozenset[str]
    ) -> Iterator[Item]:
        """Yield items with distinct questions outside `held_out_ids`.

        Raises ConfigError after 2,000 draws without a new question.
        """
        seen, since = set(held_out_ids), 0
        for chunk in itertools.count():
            generator = make(part, seed, chunk)
            for index in range(generator.config.size):
                item = self._item(self._made(generator, index))
                since += 1
                if item.id not in seen:
                    seen.add(item.id)
                    since = 0
                    yield item
                elif since > PATIENCE:
                    kind = "training" if part == "train" else part
                    new = len(seen) - len(held_out_ids)
                    raise ConfigError(
                        f"task {self.name} has too few distinct questions: only {new} {kind} items were found besides "
                        f"the {len(held_out_ids)} held out. Widen its params, or ask for fewer steps or "
                        "evaluation.new_items"
                    )

    def _made(self, generator: Any, index: int) -> Any:
        """Return an entry. Raises ConfigError for params that are refused only here, such as a million digits."""
        try:
            return generator[index]
        except (AssertionError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ConfigError(
                f"data, params of {self.name}: {self.params} is refused by the generator: {error}"
            ) from error

    def _verifier(self, scorer: Scorer, item: Item) -> Scorer:
        """Return a verifier that never runs a reply as code, or does so without rights. Raises ConfigError.

        Length and time of a reply are bounded.
        """
        if not runs_replies(scorer, item.entry):
            return short(guarded(scorer))
        if not self.run_code:
            raise ConfigError(
                f"data, name: the verifier of {self.name} runs the model's replies as code. Choose another task, or "
                "set run_code: true: each reply is then checked in a process without rights (Linux)"
            )
        isolated = Isolated(scorer)
        if not (supported() and isolated(item.answer, item.entry) >= 1.0):
            raise ConfigError(
                f"data, run_code: the replies of {self.name} cannot be checked here without rights: that needs Linux "
                f"with seccomp on {' or '.join(ALLOWED)}. Choose another task"
            )
        return short(isolated)

    def _item(self, entry: dict[str, Any]) -> Item:
        """Return an item. Raises ConfigError if the generator has no answer, but only a verifier for any answer."""
        if entry["answer"] is None:
            raise ConfigError(
                f"data, name: task {self.name} can check an answer but gives none to learn from: choose another"
            )
        worked = str(entry["metadata"].get("answer_cot", "")) if self.worked else ""
        return Item(self._asked(entry), str(entry["answer"]), entry["metadata"], worked.partition(FINAL)[0].strip())

    def _asked(self, entry: dict[str, Any]) -> str:
        """Return the generator's question, or `question` filled in. Raises ConfigError for an unknown field."""
        if self.question is None:
            return str(entry["question"])
        fields = {"question": entry["question"], **entry["metadata"]}
        try:
            return self.question.format(**fields)
        except (LookupError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"data, question of {self.name}: {self.question!r} cannot be filled in ({error}): "
                f"the fields are {', '.join(sorted(fields))}"
            ) from None


def _generators(config: ReasoningGym) -> Callable[[str, int, int], Any]:
    """Return a function (part, seed, chunk) -> generator. Raises ConfigError for an unknown task or parameter."""
    from reasoning_gym.factory import DATASETS  # seconds to import

    if config.name not in DATASETS:
        raise ConfigError(f"data, name: {unknown_name('task', config.name, sorted(DATASETS))}")
    dataset_class, config_class = DATASETS[config.name]
    own = ("seed", "size")
    known = [f.name for f in dataclasses.fields(config_class) if f.name not in own]
    wrong = [unknown_name("parameter", key, known) for key in config.params if key not in known]
    if wrong:
        raise ConfigError(f"data, params of {config.name}: " + "; ".join(wrong))

    def make(part: str, seed: int, chunk: int) -> Any:
        # Generators add the index to the seed, so neighbouring seeds share items: ours are far apart.
        name = f"{part} {seed} {chunk}" if chunk else f"{part} {seed}"
        start = random.Random(name).randrange(2**30)
        reason = ""
        for size in (CHUNK, CHUNK // 5):  # word_ladder makes at most 20,000
            try:
                settings = config_class(**config.params, seed=start, size=size)
                getattr(settings, "validate", lambda: None)()
                return dataset_class(settings)
            except (AssertionError, TypeError, ValueError, KeyError) as error:
                reason = str(error) or type(error).__name__
        raise ConfigError(f"data, params of {config.name}: {config.params} is refused by the generator: {reason}")

    return make

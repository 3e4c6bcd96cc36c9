"""The contract of a suite: one kind of measurement with its own settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.section import Section
from experiments.data.items import NewTask, NewText
from experiments.models.sharing import Progress
from experiments.records import Record

Ask = Callable[[Sequence[str], int], list[str]]  # questions, tokens at most -> a greedy reply to each


class SuiteSettings(Section):
    """The YAML section `evaluation.suites.<name>`: its fields are the suite's settings."""

    @property
    def has_floor(self) -> bool:
        """Whether the base model answers the same questions in other words too, for the A/A floor."""
        return False


@dataclass(frozen=True)
class SuiteContext:
    """Facts of the run that a suite may need besides its settings.

    base_model: its name or folder. remote_code: run Python files that it brings along.
    """

    seed: int
    base_model: str
    remote_code: bool = False


class PreparedSuite:
    """A suite that can measure any model. name: `suite` of its records."""

    name: ClassVar[str]

    @property
    def size(self) -> int:
        """Number of items that `measure` reports to `progress`."""
        raise NotImplementedError

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        """Return one record per item and form. progress: callback, called with the number of items just finished.

        Called inside `evaluating`: evaluation mode, no gradients, the precision of the run.
        """
        raise NotImplementedError

    def measure_weights(self, model: PreTrainedModel) -> Iterable[Record]:
        """Return records of the weights themselves. Called outside of `evaluating`, which may round weights to bf16."""
        return ()

    def state(self) -> dict[str, Any]:
        """Return what must not change between processes, as plain JSON: `DrawnSuite.prepare` gets it there."""
        return {}


class DrawnSuite:
    """One kind of measurement. Its items are drawn once, so the base model and every arm get the same items.

    name: key of the suite in `evaluation.suites`. version: raise it when a change of the code changes records, so that
    cached results of the base model are not used again. Settings: class of the settings. compares_tokens: whether it
    compares numbers for each token or state with the base's, so that a model needs the base's tokenizer.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    compares_tokens: ClassVar[bool] = True
    Settings: ClassVar[type[SuiteSettings]] = SuiteSettings

    def __init__(
        self,
        settings: Any,
        context: SuiteContext,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[NewTask | NewText],
    ) -> None:
        """settings: an instance of `Settings`. tasks: what the new task is measured on.

        Raises ConfigError if the settings ask for more than there is.
        """
        self.settings, self.context, self.tokenizer, self.tasks = settings, context, tokenizer, tuple(tasks)
        self.draw()

    def draw(self) -> None:
        """Draw the items. They may depend on settings, context, tokenizer and tasks only."""

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence that is read or written; 0 if the suite cuts to fit."""
        return 0

    @property
    def replies(self) -> int:
        """Number of greedy replies that `answered` asks for; 0 if the suite needs a model's probabilities."""
        return 0

    @property
    def notes(self) -> list[str]:
        """Settings that are given and not read for these items, and what spoils figures. A run says it at its start."""
        return []

    @property
    def room(self) -> Mapping[str, int]:
        """The most tokens of a reply, by the task whose answers are read out of whole replies."""
        return self.limits

    @property
    def limits(self) -> Mapping[str, int]:
        """Those of `room`, without tasks that the bench invents: no base knows an answer that could be cut off."""
        return {}

    @property
    def grading(self) -> Mapping[str, str]:
        """What decides which replies are right, by the task whose answers are read out of replies."""
        return {}

    def answered(self, ask: Ask) -> Iterable[Record]:
        """Return those records of `PreparedSuite.measure` that greedy replies alone give, in its order."""
        raise NotImplementedError

    def content(self) -> Any:
        """Return the items and all settings that change a record, as plain JSON: the key of the cache.

        Prompts count by their token ids (`tokens.asked_key`): two tokenizers may read one text in other ways.
        With None, the default, the base model is measured again in each run.
        """
        return None

    def reworded(self) -> DrawnSuite | None:
        """Return the same suite with its questions in other words, for the A/A floor; None if it has none."""
        return None

    def prepare(self, base: PreTrainedModel, state: Mapping[str, Any], folder: Path | None) -> PreparedSuite:
        """Return the suite that compares models with the base model. Called inside `evaluating`.

        state: `PreparedSuite.state` of an earlier process, or empty. folder: for files that are too large for it; None
        without a cache. Raises ConfigError for a state that does not fit the settings.
        """
        raise NotImplementedError


class Suite(DrawnSuite, PreparedSuite):
    """A suite that measures each model by itself, so its items are all that it needs.

    To add a suite, derive a class and add it to the table `experiments.evaluation.suites.SUITES`. A suite that compares
    a model with the base derives from DrawnSuite, and its `prepare` returns a PreparedSuite.
    """

    compares_tokens: ClassVar[bool] = False

    def prepare(self, base: PreTrainedModel, state: Mapping[str, Any], folder: Path | None) -> PreparedSuite:
        return self

"""What a suite of measurements is, and the state of a model in which it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.data.items import NewTask, NewText
from experiments.models.generation import Advance
from experiments.models.precision import Precision
from experiments.records import Record

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig  # which checks the names of suites, and so imports them
    from experiments.evaluation.cache import BaseCache


class Suite:
    """One kind of measurement. Its items are drawn once: the base and every arm at every step see the same.

    A suite is a class derived from this one and a line in `experiments.evaluation.evaluate.SUITES`. `prepare` and
    `measure` are called inside `evaluating`: evaluation mode, no gradients, the run's precision.

    name: in `evaluation.suites` and in the table. version: to be raised when a change of the code changes records, so
    that results of the base that were cached before are not used again.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    cache: BaseCache | None = None  # where `prepare` may keep what is too large for `state`; None: nowhere

    def __init__(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[NewTask | NewText]
    ) -> None:
        """tasks: what the new task is measured on. Raises ConfigError where the config asks for what there is not."""
        self.config, self.tokenizer, self.tasks = config, tokenizer, tuple(tasks)
        self.draw()

    def draw(self) -> None:
        """Draw the suite's own items, from the config, the tokenizer and the tasks alone."""

    @property
    def size(self) -> int:
        """How many items `measure` counts in calls of `advance`."""
        raise NotImplementedError

    def content(self) -> Any:
        """Plain JSON from which, with model and tokenizer, every record follows: the items and all settings.

        None, the default: the base's results are not cached, but measured in each run.
        """
        return None

    def prepare(self, base: PreTrainedModel, precision: Precision) -> None:
        """Take from the base model what others are compared with; what was restored is not made again."""

    def measure(self, model: PreTrainedModel, advance: Advance) -> Iterable[Record]:
        """One record per item and form. advance: to be told how many items are done."""
        raise NotImplementedError

    def weigh(self, model: PreTrainedModel) -> Iterable[Record]:
        """Records of the weights themselves, as they are trained: called outside of `evaluating`, whose precision may
        round them."""
        return ()

    def state(self) -> dict[str, Any]:
        """What `prepare` made that must not change between processes, as plain JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave in another process. Raises ConfigError where it does not fit the config."""

"""One evaluation of a model: the suites that the config names, item by item."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError
from experiments.data.items import NewTask, NewText
from experiments.evaluation.cache import BaseCache, Entry
from experiments.evaluation.suite import Suite
from experiments.evaluation.suites.alignment import AlignmentSuite
from experiments.evaluation.suites.drift import DriftSuite
from experiments.evaluation.suites.instructions import InstructionSuite
from experiments.evaluation.suites.kept import KeptSuite, RewordedKept
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.evaluation.suites.new_task import NewTaskSuite
from experiments.evaluation.suites.text import TextSuite
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import Record

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

SUITES: dict[str, type[Suite]] = {
    suite.name: suite
    for suite in (NewTaskSuite, KeptSuite, InstructionSuite, DriftSuite, TextSuite, AlignmentSuite, HarnessSuite)
}


class NotFinite(RuntimeError):
    """A model whose logits are not finite: there is nothing to measure."""


@dataclass(frozen=True)
class Baseline:
    """The base model's records. seconds: how long measuring them takes. measured: suites that were not in the cache."""

    records: list[Record]
    seconds: float
    measured: list[str]


class Evaluation:
    """The suites of `evaluation.suites`, in its order. Call `prepare` with the base model before `evaluate`."""

    def __init__(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[NewTask | NewText]
    ) -> None:
        self.suites = {name: SUITES[name](config, tokenizer, tasks) for name in config.evaluation.suites}

    def reworded(self) -> Evaluation:
        """The kept suite alone, asked in other words: what the A/A floor measures the base with once more.

        Raises ConfigError where suite `kept` is not measured.
        """
        kept, again = self._suite(KeptSuite.name), copy.copy(self)
        again.suites = {kept.name: RewordedKept(kept.config, kept.tokenizer, kept.tasks)}
        return again

    def prepare(self, base: PreTrainedModel, precision: Precision, cache: BaseCache | None = None) -> None:
        """Let each suite take from the base model, or from its cache, what it compares others with."""
        with evaluating(base, precision):
            for suite in self.suites.values():
                suite.cache = cache
                suite.prepare(base, precision)

    def measure_base(self, base: PreTrainedModel, precision: Precision, cache: BaseCache) -> Baseline:
        """Prepare, and measure the base model itself, as far as the cache does not have it. Raises as `evaluate`."""
        entries = [self._entry(suite, base, precision, cache) for suite in self.suites.values()]
        records = [record for entry, _ in entries for record in entry.records]
        measured = [name for name, (_, new) in zip(self.suites, entries, strict=True) if new]
        return Baseline(records, sum(entry.seconds for entry, _ in entries), measured)

    def _entry(self, suite: Suite, base: PreTrainedModel, precision: Precision, cache: BaseCache) -> tuple[Entry, bool]:
        """The suite's results on the base, and whether they had to be measured."""
        place, suite.cache = cache.place(suite), cache
        with cache.lock(place) if place else nullcontext():
            found = cache.read(place) if place else None
            if found:
                suite.restore(found.state)
            with evaluating(base, precision):
                suite.prepare(base, precision)
            if found:
                return found, False
            start = time.perf_counter()
            records = self.evaluate(base, precision, (suite.name,))
            entry = Entry(records, suite.state(), time.perf_counter() - start)
            if place:
                cache.write(place, suite, entry)
            return entry, True

    def state(self) -> dict[str, Any]:
        """What `prepare` made, by suite, as plain JSON: for a process that resumes the run."""
        return {name: suite.state() for name, suite in self.suites.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the state of an earlier process. Raises ConfigError where it is that of another config."""
        for name, suite in self.suites.items():
            if name in state:
                suite.restore(state[name])

    def evaluate(
        self,
        model: PreTrainedModel,
        precision: Precision,
        suites: Sequence[str] | None = None,
        progress: bool = True,
    ) -> list[Record]:
        """Measure all suites, or those named, and return one record per item and form.

        The model's modes and all random states are as before afterwards. Raises ConfigError for a suite that the
        config does not name, NotFinite for a model whose logits are not finite, RuntimeError for what was not prepared.
        """
        chosen = [self._suite(name) for name in (self.suites if suites is None else suites)]
        # disable=None: no bar where nobody watches a terminal
        off = None if progress else True
        bar = tqdm(total=sum(s.size for s in chosen), desc="evaluate", unit="item", leave=False, disable=off)
        with bar, evaluating(model, precision):
            records = [record for suite in chosen for record in suite.measure(model, bar.update)]
        records += [record for suite in chosen for record in suite.weigh(model)]
        if any(math.isnan(number) for r in records for number in (r.value or 0.0, *(r.scores or ()))):
            raise NotFinite("the model's logits are not finite, so nothing can be measured: lower the learning rate")
        return records

    def _suite(self, name: str) -> Suite:
        if name not in self.suites:
            raise ConfigError(unknown_name("suite", name, list(self.suites)))
        return self.suites[name]

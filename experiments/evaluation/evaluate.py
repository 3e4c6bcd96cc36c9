"""Measure a model with the suites of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError, NotFinite
from experiments.common.progress import progress as show_progress
from experiments.data.items import NewTask, NewText
from experiments.evaluation.cache import BaseCache, CachedSuite
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.suite import DrawnSuite, PreparedSuite, SuiteContext
from experiments.evaluation.suites import SUITES
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.models.sharing import once
from experiments.records import Record


class Places(Protocol):
    """Folders for what suites compare models with, such as a `BaseCache`."""

    def place(self, suite: DrawnSuite) -> Path | None:
        """Return the folder of a suite; None if it has none."""


@dataclass(frozen=True)
class Baseline:
    """The base model's records. seconds: duration of measuring them. measured: suites that were not in the cache."""

    records: list[Record]
    seconds: float
    measured: list[str]


Together = Callable[[PreTrainedModel, PreparedSuite, Path | None], AbstractContextManager[None]]


def alone(base: PreTrainedModel, suite: PreparedSuite, folder: Path | None) -> AbstractContextManager[None]:
    """Let one process measure."""
    return nullcontext()


class Suites:
    """The suites of `evaluation.suites` in that order, with their items drawn. `prepare` makes an Evaluation."""

    def __init__(self, suites: Mapping[str, DrawnSuite]) -> None:
        self.suites = dict(suites)

    @classmethod
    def drawn(
        cls,
        config: EvaluationConfig,
        context: SuiteContext,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[NewTask | NewText],
    ) -> Suites:
        """Draw the items of all suites of a config. tasks: what the new task is measured on.

        Raises ConfigError if a suite asks for more items than there are.
        """
        return cls({name: SUITES[name](config.settings(name), context, tokenizer, tasks) for name in config.suites})

    def reworded(self) -> Suites:
        """Return the suites that have a second wording, in that wording: for the A/A floor of the base model."""
        return Suites({name: other for name, suite in self.suites.items() if (other := suite.reworded())})

    def prepare(
        self,
        base: PreTrainedModel,
        precision: Precision,
        cache: Places | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Let each suite compute, or read from the cache, what it compares other models with.

        state: `Evaluation.state` of an earlier process. Raises ConfigError if it belongs to another config.
        """
        known = state or {}
        with evaluating(base, precision):
            prepared = [
                suite.prepare(base, known.get(name, {}), cache.place(suite) if cache else None)
                for name, suite in self.suites.items()
            ]
        return self._evaluation(prepared)

    def without_base(self) -> Evaluation:
        """Return those suites that measure each model by itself."""
        return Evaluation({name: suite for name, suite in self.suites.items() if isinstance(suite, PreparedSuite)})

    def _evaluation(self, prepared: Iterable[PreparedSuite]) -> Evaluation:
        return Evaluation(dict(zip(self.suites, prepared, strict=True)))

    def measure_base(
        self, base: PreTrainedModel, precision: Precision, cache: BaseCache, together: Together = alone
    ) -> tuple[Evaluation, Baseline]:
        """Prepare, and measure the base model with the suites that the cache does not have. Raises as `evaluate`.

        together: entered while a suite is measured, with the base, the prepared suite and its folder in the cache.
        """
        triples = [_on_base(suite, base, precision, cache, together) for suite in self.suites.values()]
        records = [record for _, found, _ in triples for record in found.records]
        measured = [name for name, (*_, is_new) in zip(self.suites, triples, strict=True) if is_new]
        seconds = sum(found.seconds for _, found, _ in triples)
        return self._evaluation(prepared for prepared, *_ in triples), Baseline(records, seconds, measured)


def _on_base(
    suite: DrawnSuite, base: PreTrainedModel, precision: Precision, cache: BaseCache, together: Together
) -> tuple[PreparedSuite, CachedSuite, bool]:
    """Return the prepared suite, its results on the base model, and whether they had to be measured."""
    place = cache.place(suite)
    with cache.lock(place) if place else nullcontext():
        found = cache.read(place) if place else None
        with evaluating(base, precision):
            prepared = suite.prepare(base, found.state if found else {}, place)
        if found:
            return prepared, found, False
        start = time.perf_counter()
        with together(base, prepared, place):
            records = Evaluation({suite.name: prepared}).evaluate(base, precision)
        found = CachedSuite(records, prepared.state(), time.perf_counter() - start)
        if place:
            cache.write(place, suite, found)
        return prepared, found, True


class Evaluation:
    """Suites that are prepared on the base model, so that they can measure any model. Made by `Suites`."""

    def __init__(self, suites: Mapping[str, PreparedSuite]) -> None:
        self.suites = dict(suites)

    def state(self) -> dict[str, Any]:
        """Return the state of each suite as plain JSON, for a process that resumes the run."""
        return {name: suite.state() for name, suite in self.suites.items()}

    def evaluate(
        self,
        model: PreTrainedModel,
        precision: Precision,
        suites: Sequence[str] | None = None,
        progress: bool = True,
    ) -> list[Record]:
        """Measure all suites, or those named, and return one record per item and form. progress: show a bar.

        Inside `sharing.shared` each process measures some of the items, and all of them get all records.

        The modes of the model and all random states are as before afterwards. Raises ConfigError for a suite that is
        not among those of the run, and NotFinite if logits are not finite.
        """
        chosen = [self._suite(name) for name in (self.suites if suites is None else suites)]
        bar = show_progress("evaluate", sum(s.size for s in chosen), "item", shown=progress)
        with bar as task, evaluating(model, precision):
            records = [record for suite in chosen for record in suite.measure(model, task.advance)]
        records += once(lambda: [record for suite in chosen for record in suite.measure_weights(model)])
        if any(math.isnan(number) for r in records for number in (r.value or 0.0, *(r.scores or ()))):
            raise NotFinite
        return records

    def _suite(self, name: str) -> PreparedSuite:
        if name not in self.suites:
            raise ConfigError(unknown_name("suite", name, list(self.suites)))
        return self.suites[name]

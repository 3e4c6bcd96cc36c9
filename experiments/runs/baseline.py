"""The base model measured in a run's folder: what every other model of the run is measured with and compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.evaluation.cache import BaseCache, Elsewhere
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.evaluate import Evaluation, Suites, alone
from experiments.models.precision import Precision
from experiments.records import Estimate, Record
from experiments.runs.base_records import BaseFolder, check_precision, check_suites
from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.figures import HEADLINE

MANY, ROUNDED = 0.1, 1  # share of replies; tokens that a text may have less than the reply that it was
SHOWN = 4  # tasks that a line names
RAISE = ": raise evaluation.suites.new.max_tokens"


@dataclass(frozen=True, eq=False)
class MeasuredBase:
    """The base model's records, and the suites that measure any model as the base was measured.

    folder: of the run. evaluation: the suites, compared with the base model. base: its records. floor: its answers to
    the reworded kept questions, for the A/A floor; empty without one. evaluation_seconds: of the base model. draws,
    seed: of the bootstrap. suites: with their items.
    """

    folder: Path
    precision: Precision
    tokenizer: PreTrainedTokenizerBase
    evaluation: Evaluation
    base: list[Record]
    floor: list[Record]
    evaluation_seconds: float
    draws: int
    seed: int
    suites: Suites

    @cached_property
    def checked(self) -> None:
        """Raise ConfigError if the base was measured with other questions or code than models now.

        Raises RunError if it was in another precision.
        """
        check_precision(self.folder, self.precision)
        check_suites(self.folder, self.suites)

    def evaluate(self, model: PreTrainedModel, progress: bool = True) -> list[Record]:
        """Measure a model as all others of the run. progress: show a bar."""
        _ = self.checked
        return self.evaluation.evaluate(model, self.precision, progress=progress)

    def score(self, records: list[Record]) -> dict[str, Estimate]:
        """Return the scorecard of records against the base model's, with the A/A floor."""
        return score(self.base, self.floor, records, self.draws, self.seed)

    @cached_property
    def base_headline(self) -> dict[str, Estimate]:
        """The headline figures of the base model itself."""
        return headline(self.score(self.base))


def score(base: list[Record], floor: list[Record], records: list[Record], draws: int, seed: int) -> dict[str, Estimate]:
    """Compute the scorecard of records against the base's, with the A/A floor if the base was asked in other words."""
    card = scorecard(base, records, draws, seed)
    return card | (aa_floor(base, floor, records, draws, seed) if floor else {})


def headline(figures: dict[str, Estimate]) -> dict[str, Estimate]:
    """Return the few figures that are shown for every evaluation."""
    return {name: figures[name] for name in HEADLINE if name in figures}


def remarks_on(base: Sequence[Record], suites: Suites, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what a reader of figures must know of the base: tasks without room, and replies that may be cut."""
    return [*without_room(base), *cut_off(base, suites, tokenizer)]


def without_room(base: Iterable[Record]) -> Iterator[str]:
    """Say of which tasks the base can forget or gain nothing: they cannot show what they are for."""
    tasks: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for one in base:
        if one.correct is not None and one.suite in ("new", "kept"):
            tasks[one.suite, f"{one.task} ({one.form})" if one.suite == "kept" else one.task].append(one)
    idle: dict[str, list[str]] = {"kept": [], "new": []}
    for (suite, task), answers in tasks.items():
        right = sum(one.correct or 0 for one in answers)
        guessed = sum(1 / len(one.options) for one in answers if one.options)
        if right <= guessed + 1e-6 if suite == "kept" else right == len(answers):
            idle[suite].append(f"{task}: {right} of {len(answers)} right")
    if kept := _first(idle["kept"]):
        yield f"kept, but the base model has no more right than a guess, so no forgetting can be seen there: {kept}"
    if new := _first(idle["new"]):
        yield f"new, but the base model knows all of it, so there is nothing to gain: {new}"


def _first(lines: Sequence[str]) -> str:
    """Join the first few: of the 57 parts of an exam a small model may know none."""
    return ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def cut_off(base: Sequence[Record], suites: Suites, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Say of which tasks many of the base's replies are as long as they may be: cut before the answer, they are wrong.

    An arm that learned to answer at once would then gain what the base knows already. Of invented facts it knows none.
    """
    limits = [(suite.name, task, most) for suite in suites.suites.values() for task, most in suite.limits.items()]
    for suite, task, most in limits:
        replies = [one.reply for one in base if (one.suite, one.task) == (suite, task) and one.reply is not None]
        sizes = [len(tokenizer(reply, add_special_tokens=False, verbose=False)["input_ids"]) for reply in replies]
        full = sum(size >= most - ROUNDED for size in sizes)
        if full > MANY * len(replies):
            said = f"{full} of {len(replies)} replies of the base model have the {most} tokens that one may have"
            yield f"{suite} task {task}: {said}, and may be cut before their answer{RAISE if suite == 'new' else ''}"


def measure_base(
    config: EvaluationConfig,
    suites: Suites,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    root: Path,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = print,
    elsewhere: Elsewhere | None = None,
    together: Callable[..., AbstractContextManager[None]] = alone,
) -> MeasuredBase:
    """Measure the base model, or read its records: from the run's `folder`, else from the cache below `root`.

    elsewhere: where other machines have them. together: see `BaseFolder`.
    """
    cache = BaseCache(root, model, tokenizer, precision, elsewhere)
    files = BaseFolder(folder / "base", suites, model, precision, cache, together)
    files.check_base()
    evaluation, base, seconds = files.measured(say)
    for line in remarks_on(base, suites, tokenizer):
        say(line)
    floor = files.floor() if config.has_floor else []
    draws = config.bootstrap
    return MeasuredBase(folder, precision, tokenizer, evaluation, base, floor, seconds, draws, seed, suites)

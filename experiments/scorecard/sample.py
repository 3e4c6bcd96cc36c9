"""The records of one checkpoint and of its base, summed over resampled questions: what figures are computed from."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, ratio, weighted
from experiments.scorecard.flips import (
    Sums,
    answers_key,
    changed_questions,
    flip_size,
    questions_in,
    resampled_counts,
    total,
    with_unseen,
)
from experiments.scorecard.inference import wilson
from experiments.scorecard.pairing import Pair, pair_records, require

NEW_PROMPTS = "new_prompts"  # task of the drift records on the new task's own prompts
GIVEN = ("text", "kept plain", "kept chat")  # tasks of the drift records on text that the base did not write
Totals: TypeAlias = Mapping[str, Array]  # COUNTS summed over questions, each (1 + draws,)
Valued: TypeAlias = tuple[Record, float, float]  # a text or reply, its value and weight
Many = TypeVar("Many", bound=Sequence[Any])


class NotMeasured(Exception):
    """The sample has no record of the kind that is asked for."""


class Sample:
    """Pair the records of a checkpoint with those of its base, and sum them over resampled questions.

    Every array is (1 + draws,), row 0 as observed. A sum is computed when a figure first asks for it; it raises
    NotMeasured if the sample has no such records. gain_reference: gain of a reference arm, for the harmonic average.
    key: seed of what is drawn for this arm alone, the flips that the sample missed; default: a hash of its answers.
    Measurements of one arm at several steps or seeds share one.

    Raises ValueError for records that do not pair (`pair_records`).
    """

    def __init__(
        self,
        base: Sequence[Record],
        after: Sequence[Record],
        draws: int = 10_000,
        seed: int = 0,
        gain_reference: float | None = None,
        key: int | None = None,
    ) -> None:
        self.pairs: dict[str, list[Pair]] = defaultdict(list)
        for pair in pair_records(base, after):
            self.pairs[pair[1].suite].append(pair)
        self.after, self.draws, self.seed = after, draws, seed
        self._gain_reference = gain_reference
        self._key = answers_key(after) if key is None else key
        self._sums: dict[str, Sums] = {}

    @cached_property
    def new(self) -> Totals:
        return self._total("new")

    @cached_property
    def kept(self) -> Totals:
        return self._total("kept")

    @cached_property
    def instructions(self) -> Totals:
        return self._total("instructions")

    @property
    def changed(self) -> tuple[int, int]:
        """How many kept questions were lost, and how many won."""
        return changed_questions(_some(self.pairs["kept"]))

    @property
    def kept_by_form(self) -> dict[str, Totals]:
        return self._grouped("kept", lambda pair: pair[1].form, lambda key: key[1])

    @property
    def kept_by_task(self) -> dict[str, Totals]:
        return self._grouped("kept", _task_of, _task)

    @property
    def by_task(self) -> list[Totals]:
        """Those of each new and each kept task."""
        return [totals for suite in ("new", "kept") for totals in self._grouped(suite, _task_of, _task).values()]

    @cached_property
    def guessed(self) -> Array:
        """Share of flips that guessing alone explains: (1 - a0)(1 - a)/(k - 1) (arXiv 2510.17776)."""
        t = self.kept
        return (1 - t["before"] / t["n"]) * (1 - t["after"] / t["n"]) * t["guess"] / t["n"]

    @property
    def gain_reference(self) -> float:
        if self._gain_reference is None:
            raise NotMeasured("gain_reference")
        return self._gain_reference

    def kept_share(self, top: str, bottom: str) -> Array:
        """top / bottom, two of COUNTS of the kept tasks."""
        if not self.kept[bottom][0]:
            raise NotMeasured(bottom)
        return ratio(self.kept[top], self.kept[bottom])

    def nll_change(self, suite: str) -> Array:
        """Negative log-likelihood of texts, after - before, nats per token, paired by document."""
        return weighted(self.nll_changes(suite), self.draws, self.seed)

    def nll_changes(self, suite: str, sign: int = 1) -> list[Valued]:
        """List the change of each text, times a sign, with its tokens."""
        pairs = _some([pair for pair in self.pairs[suite] if pair[1].form == "nll"])
        return [(r, sign * (require(r, "value") - require(r0, "value")), require(r, "tokens")) for r0, r in pairs]

    def divergence(self, task: str | None = None, own: bool = False) -> Array:
        """KL(base || trained), nats per token, on one task of the drift suite; None: on replies to general prompts.

        own: each arm may have missed another text, so what was missed does not cancel in a difference of two arms.
        Without it `units.half_means` have to be counted as well.
        """
        return weighted(self.divergences(task), self.draws, self.seed, True, (self._key,) if own else ())

    def divergences(self, task: str | None = None) -> list[Valued]:
        """List the KL of each reply or text of `divergence`, with its tokens."""
        others = (NEW_PROMPTS, *GIVEN)
        drift = [r for r in self.after if r.suite == "drift" and (r.task == task if task else r.task not in others)]
        return [(r, require(r, "value"), require(r, "tokens")) for r in _some(drift)]

    def reply_length(self, of: Callable[[int, int], int], positive: bool = False) -> Array:
        """Mean of `of(before, after)`: the characters of the replies to the new task's questions.

        positive: it is never below 0. A few replies are far longer than the others, as values of KL are.
        """
        answered = [(r0, r) for r0, r in self._answered("new") if r0.reply is not None and r.reply is not None]
        by_question: dict[tuple[str, str], list[int]] = defaultdict(list)
        for r0, r in answered:
            by_question[r.task, r.item].append(of(len(r0.reply or ""), len(r.reply or "")))
        one_of_each = {
            (r.task, r.item): r for _, r in _some(answered)
        }  # several replies to it are no further questions
        rows = ((one_of_each[key], sum(found) / len(found), 1.0) for key, found in by_question.items())
        return weighted(rows, self.draws, self.seed, positive)

    def questions(self, suite: str, with_choice: bool = False) -> int:
        """How many questions of a suite were answered; with_choice: by a choice before and after."""
        pairs = self._answered(suite)
        if with_choice:
            pairs = [pair for pair in pairs if pair[0].choice is not None and pair[1].choice is not None]
        return questions_in(pairs)

    def failures(self, suite: str) -> Estimate:
        """Share of a suite's replies, after training, from which no answer could be read."""
        return _rate([pair for pair in self.pairs[suite] if pair[1].parsed is not None], lambda r: not r.parsed)

    def accuracy(self, suite: str, field: str) -> Estimate:
        """Accuracy, after training, of the answers that have `field`: `reply` or `scores`, of a suite that has both."""
        kinds = {name: _some([p for p in self.pairs[suite] if getattr(p[1], name) is not None])
                 for name in ("reply", "scores")}  # fmt: skip
        return _rate(kinds[field], lambda r: bool(r.correct))

    def alignment(self, metric: str) -> Estimate:
        """Mean over layers of a metric against the base. No interval: a model's layers are no sample of others."""
        own = [r for r in self.after if r.suite == "alignment" and r.form == "base" and r.task == metric]
        values = _some([r.value for r in own if r.value is not None])
        return Estimate(sum(values) / len(values))

    def _answered(self, suite: str) -> list[Pair]:
        return [pair for pair in self.pairs[suite] if pair[1].form != "nll"]

    def _total(self, suite: str) -> Totals:
        """Sum COUNTS of a suite, with the flips that the sample may have missed."""
        return with_unseen(total(self._counts(suite)), flip_size(self._answered(suite)), (self.seed, self._key))

    def _grouped(
        self, suite: str, group: Callable[[Pair], str], group_of_sums: Callable[[Any], str]
    ) -> dict[str, Totals]:
        """Sum COUNTS by group, which pairs and keys of sums both name."""
        sums = self._counts(suite)
        found: dict[str, Totals] = {}
        for name in sorted({group_of_sums(key) for key in sums}):
            own = total({key: s for key, s in sums.items() if group_of_sums(key) == name})
            size = flip_size(pair for pair in self._answered(suite) if group(pair) == name)
            found[name] = with_unseen(own, size, (self.seed, self._key, zlib.crc32(name.encode())))
        return found

    def _counts(self, suite: str) -> Sums:
        if suite not in self._sums:
            self._sums[suite] = resampled_counts(_some(self._answered(suite)), self.draws, self.seed)
        return self._sums[suite]


def _some(found: Many) -> Many:
    if not found:
        raise NotMeasured
    return found


def _rate(pairs: Sequence[Pair], event: Callable[[Record], bool]) -> Estimate:
    """Share of the tuned model's records with an event, with Wilson's interval over questions."""
    return wilson(sum(event(r) for _, r in _some(pairs)) / len(pairs), questions_in(pairs))


def _task(key: Any) -> str:
    return str(key[0][0])


def _task_of(pair: Pair) -> str:
    return pair[1].task

"""Test which arms differ in which figures: p of paired differences, over all pairs of arms."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

from experiments.records import Record
from experiments.scorecard.bootstrap import Array, bootstrap_p
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.halves import of_half
from experiments.scorecard.inference import holm, mcnemar_p
from experiments.scorecard.pairing import ALONE, facts
from experiments.scorecard.seeds import Measured, drawn_over_seeds
from experiments.scorecard.units import UnitValues, half_means, larger_p, unit_values

LEVEL = 0.05
SignificantPairs: TypeAlias = Mapping[str, frozenset[frozenset[str]]]  # by figure: the pairs of arms that differ
Flips: TypeAlias = tuple[Fraction, Fraction]  # answers to a question that were won and lost, the mean over the seeds
Answers: TypeAlias = Mapping[tuple[str, str, str], Flips]  # by (suite, task, item)
_share = functools.cache(Fraction)  # few are unlike, and each is made for thousands of questions
COUNTED: Mapping[str, Callable[[Flips], Fraction]] = {"nfr": lambda flips: flips[1], "pfr": lambda flips: flips[0]}


def significant_pairs(
    arms: Mapping[str, Sequence[Measured]],
    draws: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
    choosing: bool | None = None,
) -> SignificantPairs:
    """Find the pairs of arms that differ significantly (Holm-adjusted p < level), by figure.

    arms: by name the (base, after) of each training seed, all arms on the same questions; each seed may have its own.
    p: `paired_p` of the difference, adjusted over all pairs of arms that have the figure; all pairs, since the best arm
    is only known from these very figures. A figure is left out if no pair could be significant with so few draws.
    choosing: the half of the items that counts, see `halves.of_half`. Raises ValueError for other questions.
    """
    if reason := other_questions(arms):
        raise ValueError(f"{reason}: only answers to the same questions can be paired")
    drawn = {name: drawn_over_seeds(runs, draws, seed, choosing) for name, runs in arms.items()}
    answers = {name: net_correct(runs, choosing) for name, runs in arms.items()}
    units = {name: unit_values(runs, choosing) for name, runs in arms.items()}
    found = {}
    for figure in dict.fromkeys(name for figures in drawn.values() for name in figures):
        have = {name: figures[figure] for name, figures in drawn.items() if figure in figures}
        pairs = list(itertools.combinations(have, 2))
        if not pairs or len(pairs) * 2 / (1 + draws) >= level:
            continue
        p = [
            paired_p(figure, have[a], have[b], answers[a], answers[b], halves_of(figure, units[a], units[b]))
            for a, b in pairs
        ]
        adjusted = zip(pairs, holm(p), strict=True)
        found[figure] = frozenset(frozenset(pair) for pair, value in adjusted if value < level)
    return found


def other_questions(arms: Mapping[str, Sequence[Measured]]) -> str:
    """Say which arm answered other questions than the first, and in which suites; empty if all answered the same.

    Arms of as many seeds are compared seed by seed. Suites of distances to the base (`pairing.ALONE`) do not count.
    """
    (first, runs), *others = list(arms.items()) or [("", [])]
    for name, own in others:
        pairs = zip(runs, own, strict=True) if len(runs) == len(own) else itertools.product(runs, own)
        if suites := sorted({suite for (_, one), (_, other) in pairs for suite in _unlike(one, other)}):
            return f"{name} answered other questions than {first} in {', '.join(suites)}"
    return ""


def _unlike(one: Sequence[Record], other: Sequence[Record]) -> set[str]:
    """Return the suites of records that the other side lacks, or has with another question, options or answer."""
    here, there = ({r.key: (r.prompt, *facts(r)) for r in side if r.suite not in ALONE} for side in (one, other))
    unlike = here.keys() ^ there.keys()
    for key in here.keys() & there.keys():
        if any(None not in pair and pair[0] != pair[1] for pair in zip(here[key], there[key], strict=True)):
            unlike |= {key}
    return {key[0] for key in unlike}


def paired_p(
    figure: str, first: Array, second: Array, one: Answers, other: Answers, halves: Array | None = None
) -> float:
    """Two-sided p that a figure is the same in two arms. first, second: (1 + draws,); one, other: `net_correct`.

    `bootstrap_p`; for shares of right answers (`Figure.sign_test`) the larger of it and the exact sign test over the
    questions that one arm answered better than the other: resampling says too little if few questions differ (7 of 64,
    all one way: .001 against .016). Of flips it counts the questions that one arm lost, or won, more often. halves:
    `half_means` of a figure that is a mean of texts or replies: the larger of the two p counts there as well.
    """
    p = larger_p(bootstrap_p(first - second), halves)
    row = FIGURES.get(figure)  # a family's members have none
    if row is None or not row.sign_test:
        return p
    count, none = COUNTED.get(figure, lambda flips: flips[0] - flips[1]), (Fraction(0), Fraction(0))
    pairs = [(own, other.get(key, none)) for key, own in one.items() if key[0] == row.suite]
    changes = [count(own) - count(others) for own, others in pairs if own != others]
    return max(p, mcnemar_p(sum(c < 0 for c in changes), sum(c > 0 for c in changes)))


def halves_of(figure: str, one: UnitValues, other: UnitValues) -> Array | None:
    """Return `half_means` of a figure in two arms; None if it is no mean of texts or replies in both."""
    return half_means(one[figure], other[figure]) if figure in one and figure in other else None


def net_correct(runs: Sequence[Measured], choosing: bool | None = None) -> Answers:
    """Count the answers to each question, over its forms, that were won and lost: the mean over the seeds.

    A fraction, so that an arm of 2 seeds and one of 3 are equal if their means are.
    """
    found: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for base, after in runs:
        before = {record.key: record.correct for record in of_half(base, choosing)}
        for record in of_half(after, choosing):
            if record.correct is not None and (had := before.get(record.key)) is not None:
                counts = found[record.suite, record.task, record.item]
                counts[0] += record.correct > had
                counts[1] += record.correct < had
    return {key: (_share(won, len(runs)), _share(lost, len(runs))) for key, (won, lost) in found.items()}

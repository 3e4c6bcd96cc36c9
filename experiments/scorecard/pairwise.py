"""Which arms differ, and in which figures: p of paired differences, and all pairs of the arms of a report."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from experiments.scorecard.bootstrap import Array, bootstrap_p
from experiments.scorecard.inference import holm, mcnemar_p
from experiments.scorecard.seeds import Measured, drawn_over_seeds

LEVEL = 0.05
ANSWERS = {  # figures that are shares of right answers, and the suite whose they are
    **dict.fromkeys(("gain", "gain_normalised", "new_accuracy"), "new"),
    **dict.fromkeys(("retention", "retention_adjusted", "kept_accuracy", "forgetting", "nfr", "pfr"), "kept"),
}
Apart = Mapping[str, frozenset[frozenset[str]]]  # by figure: the pairs of arms that differ in it
Answers = Mapping[tuple[str, str, str], int]  # by (suite, task, item)


def apart(arms: Mapping[str, Sequence[Measured]], draws: int = 10_000, seed: int = 0, level: float = LEVEL) -> Apart:
    """The pairs of arms whose difference is told from 0: p of the paired difference, with Holm's correction over all
    pairs of arms that have the figure, below `level`.

    p: `bootstrap_p`; for shares of right answers the larger of it and the exact sign test over the questions that one
    arm answered better than the other, since resampling says too little where few questions differ (7 of 64, all one
    way: .001 against .016). arms: (base, after) of each training seed, by name, of the same questions. All pairs,
    since the best arm is only known from these very figures. A figure is left out where so few draws cannot tell any
    of so many pairs apart.
    """
    drawn = {name: drawn_over_seeds(runs, draws, seed) for name, runs in arms.items()}
    answers = {name: won_answers(runs) for name, runs in arms.items()}
    found = {}
    for figure in dict.fromkeys(name for figures in drawn.values() for name in figures):
        have = {name: figures[figure] for name, figures in drawn.items() if figure in figures}
        pairs = list(itertools.combinations(have, 2))
        if not pairs or len(pairs) * 2 / (1 + draws) >= level:
            continue
        p = [paired_p(figure, have[a], have[b], answers[a], answers[b]) for a, b in pairs]
        told = zip(pairs, holm(p), strict=True)
        found[figure] = frozenset(frozenset(pair) for pair, value in told if value < level)
    return found


def paired_p(figure: str, first: Array, second: Array, one: Answers, other: Answers) -> float:
    """Two-sided p that a figure is the same in two arms. first, second: (1 + draws,); one, other: `won_answers`."""
    p = bootstrap_p(first - second)
    suite = ANSWERS.get(figure)
    if suite is None:
        return p
    changes = [one[key] - other.get(key, 0) for key in one if key[0] == suite]
    return max(p, mcnemar_p(sum(c < 0 for c in changes), sum(c > 0 for c in changes)))


def won_answers(runs: Sequence[Measured]) -> Answers:
    """Right answers after less those before, of each question, over its forms and the seeds."""
    won: dict[tuple[str, str, str], int] = defaultdict(int)
    for base, after in runs:
        for sign, records in ((-1, base), (1, after)):
            for record in records:
                if record.correct is not None:
                    won[record.suite, record.task, record.item] += sign * record.correct
    return won

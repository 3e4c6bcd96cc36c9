"""Which arms of a report differ, and in which figures: paired differences of all pairs of arms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from experiments.scorecard.bootstrap import Array, bootstrap_p
from experiments.scorecard.inference import holm

LEVEL = 0.05
Apart = Mapping[str, frozenset[frozenset[str]]]  # by figure: the pairs of arms that differ in it


def apart(arms: Mapping[str, Mapping[str, Array]], level: float = LEVEL) -> Apart:
    """The pairs of arms whose difference is told from 0: `bootstrap_p` of the paired difference, Holm's correction over
    all pairs of arms that have the figure, below `level`.

    arms: what `drawn_over_seeds` gives, by name, with the same draws and seed. All pairs, since the best arm is only
    known from these very figures. A figure is left out where so few draws cannot tell any of so many pairs apart.
    """
    found = {}
    for figure in dict.fromkeys(name for figures in arms.values() for name in figures):
        drawn = {name: figures[figure] for name, figures in arms.items() if figure in figures}
        pairs = list(itertools.combinations(drawn, 2))
        if not pairs or len(pairs) * 2 / len(next(iter(drawn.values()))) >= level:
            continue
        p = holm([bootstrap_p(drawn[first] - drawn[second]) for first, second in pairs])
        found[figure] = frozenset(frozenset(pair) for pair, value in zip(pairs, p, strict=True) if value < level)
    return found

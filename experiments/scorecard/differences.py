"""Differences between models that answered the same questions, with p and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.records import Estimate
from experiments.scorecard.bootstrap import Array, estimate
from experiments.scorecard.figures import shown
from experiments.scorecard.inference import holm
from experiments.scorecard.pairwise import Answers, halves_of, paired_p
from experiments.scorecard.units import UnitValues, widened

COMPARED = tuple(figure.name for figure in shown("compare"))


@dataclass(frozen=True)
class Difference:
    """A figure of a run less that of the reference, draw by draw. p: `paired_p`; p_holm: adjusted over the runs."""

    name: str
    figure: str
    value: Estimate
    p: float
    p_holm: float


def differences(
    drawn: Mapping[str, Mapping[str, Array]],
    answers: Mapping[str, Answers],
    reference: str,
    units: Mapping[str, UnitValues] | None = None,
) -> list[Difference]:
    """Subtract the reference's figures from those of every other run, with `paired_p` and Holm's p over the runs.

    answers, units: `net_correct` and `unit_values` by run.
    """
    found = []
    for figure in COMPARED:
        if figure not in drawn[reference]:
            continue
        own = drawn[reference][figure]
        others = {n: f[figure] for n, f in drawn.items() if n != reference and figure in f}
        halves = {n: halves_of(figure, units[n], units[reference]) if units else None for n in others}
        p = [paired_p(figure, values, own, answers[n], answers[reference], halves[n]) for n, values in others.items()]
        for (name, values), raw, adjusted in zip(others.items(), p, holm(p), strict=True):
            found.append(Difference(name, figure, widened(estimate(values - own), halves[name]), raw, adjusted))
    return found

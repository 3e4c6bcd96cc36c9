"""The A/A floor: how many answers of the base model flip although nothing was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, check_draws, estimate
from experiments.scorecard.card import drawn_figures
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.flips import answers_key
from experiments.scorecard.inference import wilson
from experiments.scorecard.sample import Sample

ABOVE = {"nfr": "nfr_above_floor", "persistence_corrected": "persistence_above_floor"}


def _rate(name: str, values: Array, sample: Sample) -> Estimate:
    """Give a figure of the floor the kind of interval that an arm's has: draws of no flip at all exclude 0."""
    trials = FIGURES[name].trials if name in FIGURES else None
    return wilson(float(values[0]), trials(sample)) if trials else estimate(values)


def aa_floor(
    base: Sequence[Record],
    base_again: Sequence[Record],
    after: Sequence[Record] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute flips and retention of the base against itself on the kept tasks: the figures of suite `floor`.

    base_again: the base measured once more on the same questions and forms, in other words or with the options in
    another order; ids of items stay the same. Tasks of `base` and `after` that were not asked again are left out.
    Choices are compared by the text of the option. after: a tuned model's records; adds persistence_corrected, and its
    distance and that of nfr to the floor, subtracted draw by draw.

    Raises ValueError if the two measurements are not of the same items, or none is of suite kept.
    """
    check_draws(draws)
    twice = {r.key[:3] for r in base_again if r.suite == "kept"}  # not the tasks of lm_eval, which are asked once
    first, again, tuned = ([r for r in records if r.key[:3] in twice] for records in (base, base_again, after))
    if not first:
        raise ValueError("the A/A floor needs records of suite 'kept', but the base has none")
    again = [dataclasses.replace(r, prompt=None) for r in again]  # pairs are otherwise refused if in other words
    names = [name.removeprefix("floor_") for name in FIGURES if name.startswith("floor_")]
    # a key of its own: with the same answers as a tuned model it would miss the same flips, and the distance of the two
    # would have no width
    sample = Sample(first, again, draws, seed, key=answers_key(again) + 1)
    floor = drawn_figures(sample, names)
    card = {f"floor_{name}": _rate(name, values, sample) for name, values in floor.items()}
    if tuned:
        flips = drawn_figures(Sample(first, tuned, draws, seed), ABOVE)
        above = {ABOVE[name]: flips[name] - floor[name] for name in flips if name in floor}
        own = {name: values for name, values in flips.items() if FIGURES[name].suite == "floor"}
        card |= {name: estimate(values) for name, values in (above | own).items()}
    return card

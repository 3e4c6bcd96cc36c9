"""The A/A floor: how many answers of the base model flip although nothing was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import check_draws, estimate
from experiments.scorecard.flips import CORRECTED, flip_figures, resampled_counts, total
from experiments.scorecard.pairing import pair_records


def aa_floor(
    base: Sequence[Record],
    base_again: Sequence[Record],
    after: Sequence[Record] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Flips of the base against itself on the kept tasks: `floor_nfr`, `floor_pfr`, `floor_nfr_mc` and the others.

    base_again: the base measured once more on the same questions and forms, in other words or with the options in
    another order; ids of items stay the same. Tasks of `base` and `after` that were not asked again are
    left out. Choices are compared by the text of the option. after: a tuned model's records; adds `nfr_above_floor` =
    nfr - floor_nfr, `persistence_above_floor`: subtracted draw by draw; and persistence_corrected = k/(k-1) (n10/n -
    y/n/(k-2)), k >= 3, y: answers that went from wrong to another wrong option: an estimate of what was forgotten
    without lucky guesses, which says little without the floor beside it.

    Raises ValueError where the two measurements are not of the same items, or none is of suite kept.
    """
    check_draws(draws)
    twice = {r.key[:3] for r in base_again if r.suite == "kept"}  # not the tasks of lm_eval, which are asked once
    first, again, tuned = ([r for r in records if r.key[:3] in twice] for records in (base, base_again, after))
    if not first:
        raise ValueError("the A/A floor needs records of suite 'kept', but the base has none")
    again = [dataclasses.replace(r, prompt=None) for r in again]  # pairs are otherwise refused if in other words
    floor = flip_figures(total(resampled_counts(pair_records(first, again), draws, seed)))
    card = {f"floor_{name}": estimate(values) for name, values in floor.items()}
    if tuned:
        flips = flip_figures(total(resampled_counts(pair_records(first, tuned), draws, seed)))
        for name, short in (("nfr", "nfr"), (CORRECTED, "persistence")):
            if name in flips and name in floor:
                card[f"{short}_above_floor"] = estimate(np.subtract(flips[name], floor[name]))
        if CORRECTED in flips:
            card[CORRECTED] = estimate(flips[CORRECTED])
    return card

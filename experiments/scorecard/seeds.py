"""One figure over several training seeds: seeds are resampled, then items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, check_draws, estimate
from experiments.scorecard.card import by_suite
from experiments.scorecard.draws import drawn_figures
from experiments.scorecard.pairing import pair_records

Measured = tuple[Sequence[Record], Sequence[Record]]  # base, after


def over_seeds(runs: Sequence[Measured], draws: int = 10_000, seed: int = 0) -> dict[str, Estimate]:
    """Mean over training seeds of every figure that all of them have, with a hierarchical interval.

    runs: (base, after) of each training seed; at least 2, and 3 for a claim. In each draw the items are resampled (the
    same ones for all seeds, which answer the same questions), then S seeds are drawn with replacement. The seeds'
    deviation from their mean is multiplied by sqrt(S / (S - 1)), without which a bootstrap of S values has a variance
    too small by (S - 1)/S. With 3 seeds that differ much the interval is still too narrow (a t quantile with 2 degrees
    of freedom is 4.3, not 1.96): `tests/experiments/scorecard/test_seeds.py` says by how much.

    Raises ValueError for fewer than 2 seeds or 100 draws.
    """
    check_draws(draws)
    if len(runs) < 2:
        raise ValueError(f"seeds can be resampled from 2 on (3 for a claim), but got {len(runs)}: train more seeds")
    drawn = []
    for base, after in runs:
        drift = [record for record in after if record.suite == "drift"]
        drawn.append(drawn_figures(by_suite(pair_records(base, after)), drift, draws, seed))
    names = [name for name in drawn[0] if all(name in figures for figures in drawn)]
    return {name: estimate(resample_seeds(np.stack([d[name] for d in drawn]), seed)) for name in names}


def resample_seeds(values: Array, seed: int) -> Array:
    """values (S seeds, 1 + draws) -> (1 + draws,): row 0 is the mean as observed, each other row that of S seeds drawn
    with replacement, the deviation from the mean of all widened by sqrt(S / (S - 1))."""
    count, rows = values.shape
    rng = np.random.default_rng([seed, count])
    picks = rng.integers(count, size=(count, rows))
    mean = values.mean(axis=0)
    drawn = np.take_along_axis(values, picks, axis=0).mean(axis=0)
    out = mean + np.sqrt(count / (count - 1)) * (drawn - mean)
    out[0] = mean[0]
    return out

"""Figures over several training seeds: seeds are resampled, then items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from scipy.special import stdtrit

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, check_draws, estimate
from experiments.scorecard.card import drawn_figures
from experiments.scorecard.figures import bounded
from experiments.scorecard.flips import answers_key
from experiments.scorecard.halves import of_half
from experiments.scorecard.sample import Sample

Measured: TypeAlias = tuple[Sequence[Record], Sequence[Record]]  # base, after


def over_seeds(
    runs: Sequence[Measured], draws: int = 10_000, seed: int = 0, choosing: bool | None = None
) -> dict[str, Estimate]:
    """Average every figure that all training seeds have, with a hierarchical interval.

    runs: (base, after) of each training seed; at least 2, and 3 for a claim. They may answer other questions, since a
    seed draws its own, but of the same suites, tasks and forms. In each draw the items are resampled (with the same
    weights in all seeds), then the mean over seeds gets an error of a mean of S values, Student's t with S - 1 degrees
    of freedom times s / sqrt(S): with 3 seeds 4.3 s / sqrt(3), not 1.96. Drawing the S seeds with replacement covers 76
    to 84 times in 100 there (`resample_seeds`).
    Intervals end where a figure's values end (`bounded`). choosing: the half of the items that counts, see
    `halves.of_half`.

    Raises ValueError for fewer than 2 seeds or 100 draws, and for seeds that were measured on other tasks.
    """
    check_draws(draws)
    if len(runs) < 2:
        raise ValueError(f"seeds can be resampled from 2 on (3 for a claim), but got {len(runs)}: train more seeds")
    drawn = drawn_over_seeds(runs, draws, seed, choosing)
    return {name: bounded(name, estimate(values)) for name, values in drawn.items()}


def drawn_over_seeds(runs: Sequence[Measured], draws: int, seed: int, choosing: bool | None = None) -> dict[str, Array]:
    """Draw every figure that all runs have, (1 + draws,): of one run as it is, of several the mean of `over_seeds`."""
    check_seeds(runs)
    runs = [(of_half(base, choosing), of_half(after, choosing)) for base, after in runs]
    key = answers_key(*(after for _, after in runs))
    drawn = [drawn_figures(Sample(base, after, draws, seed, key=key)) for base, after in runs]
    if len(drawn) == 1:
        return drawn[0]
    names = [name for name in drawn[0] if all(name in figures for figures in drawn)]
    return {name: resample_seeds(np.stack([figures[name] for figures in drawn]), seed) for name in names}


def check_seeds(runs: Sequence[Measured]) -> None:
    """Raise ValueError if a seed was measured on other suites, tasks or forms than the first."""
    first, *others = [_measured_on(after) for _, after in runs]
    for number, own in enumerate(others, 2):
        if wrong := sorted(first ^ own):
            raise ValueError(
                f"seed 1 and seed {number} of {len(runs)} were not measured on the same tasks: "
                f"{', '.join('/'.join(kind) for kind in wrong)} in one of them alone. Measure all seeds with the same "
                "evaluation section, or average only those that were"
            )


def _measured_on(records: Sequence[Record]) -> set[tuple[str, ...]]:
    """List (suite, task, form). Kinds of instructions are drawn with the questions, so of these only suite and form."""
    return {(r.suite, r.form) if r.suite == "instructions" else (r.suite, r.task, r.form) for r in records}


def resample_seeds(values: Array, seed: int) -> Array:
    """Resample the mean over seeds: values (S seeds, 1 + draws) -> (1 + draws,), row 0 as observed.

    Each other row is the drawn mean + w . (observed - their mean), w = g / sqrt(S q), g: S standard normals, q: chi
    squared with S - 1 degrees of freedom.
    g . (observed - mean) is normal with variance (S - 1) s^2, so the sum is the drawn mean + t s / sqrt(S) with t of
    S - 1 degrees of freedom. s is that of the observed values: that other questions would move each seed apart is in
    them already. It is linear in the values and w depends on seed and S alone: figures of two arms may be subtracted.
    """
    count, rows = values.shape
    rng = np.random.default_rng([seed, count])
    weights = rng.standard_normal((count, rows)) / np.sqrt(count * rng.chisquare(count - 1, rows))
    weights[:, 0] = 0
    mean = values.mean(axis=0)
    return np.asarray(mean + (weights * (values[:, :1] - mean[0])).sum(axis=0))


def mean_card(cards: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Average each figure that the cards of all seeds have (`mean_estimate`), within the bounds of its values."""
    names = [name for name in cards[0] if all(name in card for card in cards)]
    return {name: bounded(name, mean_estimate([card[name] for card in cards])) for name in names}


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Average the values of S seeds, with an interval of their questions and of how much the seeds differ.

    From the mean, each end is sqrt(h^2 + (t s / sqrt(S))^2) away: h to the mean of the seeds' ends, s the standard
    deviation of their values, t of Student's distribution with S - 1 degrees of freedom. It needs no item records,
    which `over_seeds` resamples. An end that one of the seeds lacks is None.
    """
    values = [one.value for one in estimates]
    value = math.fsum(values) / len(values)
    error = 0.0
    if len(values) > 1:
        error = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)) / math.sqrt(len(values))

    def end(ends: Sequence[float | None], sign: int) -> float | None:
        known = [one for one in ends if one is not None]
        if len(known) < len(ends):
            return None
        return value + sign * math.hypot(math.fsum(known) / len(known) - value, error)

    return Estimate(value, end([one.low for one in estimates], -1), end([one.high for one in estimates], 1))

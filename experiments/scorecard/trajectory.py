"""Figures of a whole trajectory: retention at matched gain, area, hypervolume, stability gap.

A trajectory is the points (gain, retention) of one arm in the order of its steps, the base model (0, 1) first. Arrays
have shape (points,) or (points, 1 + draws), row 0 of the draws as observed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import (
    Array,
    check_draws,
    estimate,
    further_away,
    harmonic,
    of_highest,
    ratio,
)
from experiments.scorecard.card import drawn_figures
from experiments.scorecard.figures import GAINS
from experiments.scorecard.flips import answers_key
from experiments.scorecard.sample import Sample


@dataclass(frozen=True)
class Trajectory:
    """The course of one arm. steps: (points,), step 0 included; gain, retention, forgetting: (points, 1 + draws)."""

    steps: tuple[int, ...]
    gain: Array
    retention: Array
    forgetting: Array


def drawn_trajectory(
    base: Sequence[Record],
    checkpoints: Mapping[int, Sequence[Record]],
    draws: int = 10_000,
    seed: int = 0,
    key: int | None = None,
) -> Trajectory:
    """Draw a trajectory from the records of each checkpoint, by step. All points share their resampled questions.

    The gain is the figure of `headline_gain`. key: as of `Sample`. Raises ValueError if the new task or the kept tasks
    were not measured.
    """
    check_draws(draws)
    wanted = [record for record in base if record.suite in ("new", "kept")]
    measured = {step: [r for r in records if r.suite in ("new", "kept")] for step, records in checkpoints.items()}
    key = answers_key(*measured.values()) if key is None else key
    points = {}
    for step in sorted({0, *checkpoints}):
        after = measured[step] if step else wanted
        figures = drawn_figures(Sample(wanted, after, draws, seed, key=key), (*GAINS, "retention", "forgetting"))
        if step == 0:  # the base itself: nothing was missed
            figures = {name: np.broadcast_to(values[:1], values.shape) for name, values in figures.items()}
        gain = next((figures[name] for name in GAINS if name in figures), None)
        if gain is None or "retention" not in figures:
            raise ValueError("a trajectory needs records of the suites 'new' and 'kept' at every step")
        points[step] = (gain, figures["retention"], figures["forgetting"])
    gain, retention, forgetting = (np.stack(column) for column in zip(*points.values(), strict=True))
    return Trajectory(tuple(points), gain, retention, forgetting)


def gained(gain: Array) -> bool:
    """Whether the highest gain of the points is above 0 with its whole interval. gain: (points, 1 + draws)."""
    low = estimate(gain[int(np.nanargmax(gain[:, 0]))]).low
    return low is not None and low > 0


def trajectory_figures(paths: Mapping[str, Trajectory]) -> tuple[float | None, dict[str, dict[str, Array]]]:
    """Compute hypervolume, retention_matched and area of each arm. Returns (the matched gain, arm -> figure -> draws).

    An arm that never gains (`gained`) has the hypervolume alone: it would set the matched gain of all arms to next to
    nothing. If no arm gains, the matched gain is None.
    """
    figures = {
        name: {"hypervolume": np.maximum(of_highest(hypervolume(path.gain, path.retention)), 0)}  # an area
        for name, path in paths.items()
    }
    learned = {name: path for name, path in paths.items() if gained(path.gain)}
    if not learned:
        return None, figures
    gain, matched = matched_retention(learned)
    for name, path in learned.items():
        area = envelope_area(path.gain, path.retention, gain)
        figures[name] |= {"retention_matched": matched[name], "area": area}
    return gain, figures


def harmonic_averages(paths: Mapping[str, Trajectory], learned: Collection[str]) -> dict[str, Array]:
    """Draw the harmonic mean of retention and of the gain over the highest gain of those that learned, at the end.

    That highest gain is uncertain too, as is which arm has it: each draw takes the one of its value and its draw that
    leads further away. With the value alone, intervals covered 86 to 90 times in 100. Empty if no gain is above 0.
    """
    ends = [paths[name].gain[-1] for name in learned]
    best = max(ends, key=lambda gain: float(gain[0]), default=np.zeros(1))
    if not best[0] > 0:
        return {}
    return {
        name: further_away(
            harmonic(path.retention[-1], path.gain[-1] / best[0]),
            harmonic(path.retention[-1], ratio(path.gain[-1], best)),
        )
        for name, path in paths.items()
    }


def matched_retention(
    trajectories: Mapping[str, Trajectory], gain: float | None = None
) -> tuple[float, dict[str, Array]]:
    """Compute the retention of each arm at one common gain: (the gain, arm -> (1 + draws,)); NaN if an arm never
    reaches it.

    gain: default the highest that all arms reach. The fairest single number: an arm that learns little keeps much.
    """
    if gain is None:
        gain = min(float(np.nanmax(t.gain[:, 0])) for t in trajectories.values())
    return gain, {name: value_at(t.gain, t.retention, gain) for name, t in trajectories.items()}


def value_at(gain: Array, values: Array, target: float) -> Array:
    """Interpolate a figure where the points first reach the gain `target`, between the points around it.

    Each draw finds its own pair of points from its own gains, w = (target - g0)/(g1 - g0); one that does not reach the
    target is read at its highest gain. With the observed pair in all draws, intervals covered 64 to 86 times in 100 if
    the gain rests, where a later point is first by luck, and two equal arms differed (p < .05) in 20 to 35. NaN if the
    observed gains do not reach the target. (points, 1 + draws) -> (1 + draws,).
    """
    reached = gain >= target
    if not reached[:, 0].any():
        return np.full(gain.shape[1], np.nan)
    after = np.where(reached.any(axis=0), reached.argmax(axis=0), gain.argmax(axis=0))
    pair = np.stack([np.maximum(after - 1, 0), after])
    (g0, g1), (first, second) = (np.take_along_axis(column, pair, axis=0) for column in (gain, values))
    way = g1 - g0
    weight = np.divide(target - g0, way, out=np.ones_like(way), where=way != 0).clip(0, 1)
    return np.asarray((1 - weight) * first + weight * second)


def envelope_area(gain: Array, retention: Array, most: float, cells: int = 200) -> Array:
    """Compute the area under the upper envelope of the trajectory from gain 0 to `most`, divided by `most`.

    The result is a mean retention. The envelope at a gain g is the highest retention of all line segments of the
    trajectory that cross g. A draw that does not reach g takes its retention at its highest gain; a trajectory that
    does not reach `most` as observed gives NaN. Midpoint rule with `cells` cells. (points, 1 + draws) -> (1 + draws,).
    """
    if not most > 0:
        raise ValueError(f"most must be a gain above 0, but got {most}")
    if gain[:, 0].max() < most:
        return np.full(gain.shape[1], np.nan)
    grid = ((np.arange(cells) + 0.5) / cells * most)[:, None]
    best = np.full((cells, gain.shape[1]), -np.inf)
    for i in range(len(gain) - 1):
        way = gain[i + 1] - gain[i]
        weight = np.divide(grid - gain[i], way, out=np.full_like(best, -1.0), where=way != 0)
        value = (1 - weight) * retention[i] + weight * retention[i + 1]
        best = np.where((weight >= 0) & (weight <= 1), np.maximum(best, value), best)
    end = np.take_along_axis(retention, gain.argmax(axis=0)[None], axis=0)
    return np.asarray(np.where(np.isneginf(best), end, best).mean(axis=0))


def hypervolume(gain: Array, retention: Array, reference: float = 0.0) -> Array:
    """Compute the area that the points dominate, above gain 0 and retention `reference`; both are to be high.

    Sum over the points from the highest gain down of the best retention so far times the step in gain, so dominated
    points add nothing (Zitzler & Thiele 1999). (points, 1 + draws) -> (1 + draws,).
    """
    order = np.argsort(-gain, axis=0, kind="stable")
    g = np.maximum(np.take_along_axis(gain, order, axis=0), 0)
    height = np.maximum(np.take_along_axis(retention, order, axis=0) - reference, 0)
    best = np.maximum.accumulate(height, axis=0)
    width = g - np.concatenate([g[1:], np.zeros_like(g[:1])])
    return np.asarray((best * width).sum(axis=0))


def stability_gap(trajectory: Trajectory) -> tuple[Estimate, int | None]:
    """Find the largest fall of kept accuracy below the base, and the first later step back at the base's level.

    Returns (depth, step); the step is None without a recovery or a fall (arXiv 2205.13452). The depth is the highest
    forgetting of all steps; that it was picked for being deepest is in its interval (`of_highest`). 0 without a fall.
    """
    fall = trajectory.forgetting
    deepest = int(np.argmax(fall[:, 0]))
    if fall[deepest, 0] <= 0:
        return Estimate(0.0), None
    later = range(deepest + 1, len(trajectory.steps))
    recovered = next((trajectory.steps[i] for i in later if fall[i, 0] <= 0), None)
    depth = fall.max(axis=0)
    return estimate(
        np.maximum(of_highest(depth) if len(fall) > 2 else depth, 0)
    ), recovered  # of the base itself it is 0

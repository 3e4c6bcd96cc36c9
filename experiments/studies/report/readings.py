"""Further readings of a study for its report: retention at a common gain, hypervolume of the Pareto front, constraints.

Each returns a sentence, or several, which is empty if it does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.records import Estimate, read_records
from experiments.reporting.text import format_number, with_interval
from experiments.scorecard import gained, hypervolume, matched_retention
from experiments.scorecard.bootstrap import estimate
from experiments.scorecard.figures import bounded
from experiments.scorecard.halves import even
from experiments.scorecard.seeds import resample_seeds
from experiments.scorecard.trajectory import Trajectory, drawn_trajectory
from experiments.studies.selection import ReportRow
from experiments.studies.trial_results import has_records, record_files, result_of
from experiments.studies.trials import Trial

if TYPE_CHECKING:
    from experiments.studies.queue import Store

MOST = 24  # arms that a sentence lists
DRAWS = 10_000


def matched_gain(arms: Sequence[ReportRow], root: Path) -> str:
    """Say each arm's retention at the highest gain that all arms reach, with its interval.

    Of the reported half of the items, for arms that were evaluated at least twice in training. Arms that never gain by
    more than their interval would set that gain to next to nothing: they are named and left out. Needs item records.
    """
    drawn = {arm.name: found for arm in arms if not arm.result.operation and (found := trajectories(arm, root))}
    reach = {name: min(float(np.nanmax(t.gain[:, 0])) for t in found) for name, found in drawn.items()}
    idle = [name for name, found in drawn.items() if not all(gained(t.gain) for t in found)]
    used = {name: found for name, found in drawn.items() if name not in idle}
    if len(used) < 2:
        return ""
    target, kept = matched_retention({f"{i} {name}": t for name, found in used.items() for i, t in enumerate(found)})
    figures = {name: _over_seeds([kept[f"{i} {name}"] for i in range(len(found))]) for name, found in used.items()}
    ranked = sorted(figures, key=lambda name: -figures[name].value)
    listed = ", ".join(f"{name} {with_interval(figures[name])}" for name in ranked[:MOST])
    more = f" and {len(ranked) - MOST} more" if len(ranked) > MOST else ""
    least = min(used, key=lambda name: reach[name])
    without = f" Without a gain outside its interval, and so left out: {', '.join(idle)}." if idle else ""
    return (
        f"Retention at a common gain of {format_number(target, True)}, the highest that all reach ({least} no more): "
        f"{listed}{more}. Interpolated between evaluations.{without}"
    )


def trajectories(arm: ReportRow, root: Path) -> list[Trajectory]:
    """Draw a trajectory per seed from the item records of each evaluation.

    None if records are missing or measured no gain, or after a single evaluation.
    """
    found = []
    for run in arm.runs if arm.records else ():
        steps = [int(point["step"]) for point in result_of(run).trajectory if point["step"]]
        files = {step: record_files(run, root, step) for step in steps}
        if not files or not all(path.is_file() for pair in files.values() for path in pair):
            return []
        base, *_ = next(iter(files.values()))
        read = {step: read_records(path) for step, path in {0: base, **{s: f for s, (_, f) in files.items()}}.items()}
        used = {step: [r for r in records if not (arm.halves and even(r))] for step, records in read.items()}
        if len(used) < 3:  # base and one evaluation: a straight line would be read, not a measurement
            return []
        try:
            found.append(drawn_trajectory(used.pop(0), used, DRAWS))
        except ValueError:  # this half has no such item
            return []
    return found


def pareto_volume(store: Store, trials: Sequence[Trial]) -> str:
    """Say the area that the trials dominate, with two objectives, above the worst value of each."""
    objectives = store.config.objectives
    points = np.array([t.values for t in trials if t.values and t.feasible])
    if len(objectives) != 2 or len(points) < 2:
        return ""
    signs = np.array([1 if o.direction == "maximize" else -1 for o in objectives])
    worst = (points * signs).min(axis=0)
    above = points * signs - worst
    at = ", ".join(f"{o.figure} {value:.3g}" for o, value in zip(objectives, worst * signs, strict=True))
    volume = float(hypervolume(above[:, 0], above[:, 1]))
    return (
        f"{len(store.front())} of {len(points)} trials are on the Pareto front; the area that they dominate "
        f"(hypervolume) is {volume:.4g}, measured from the worst value of each objective ({at})."
    )


def outside(trials: Sequence[Trial], arms: Sequence[ReportRow]) -> list[str]:
    """Say which trials break a constraint, what does not show them, and the arms that have no other."""
    broken = [trial for trial in trials if trial.state == "complete" and not trial.feasible]
    if not broken:
        return []
    limits = dict.fromkeys(name for trial in broken for name, value in trial.constraints.items() if value > 0)
    numbers = ", ".join(f"#{trial.number}" for trial in broken)
    found = [
        f"Not within the constraints ({', '.join(limits)}): trial {numbers}. None of them is on the front, or chosen "
        "for an arm that has another one. The table of the same gain reads all trials."
    ]
    if lacking := [arm.name for arm in arms if not arm.trial.feasible]:
        found.append(f"No variant of these arms satisfies the constraints: {', '.join(lacking)}.")
    return found


def without_records(trials: Sequence[Trial], root: Path) -> list[str]:
    """Say which trials have no item records here, and what that does to the comparison of arms."""
    lacking = [trial.number for trial in trials if trial.state == "complete" and not has_records(trial.runs, root)]
    if not lacking:
        return []
    return [
        f"Item records of trial {', '.join(map(str, lacking))} are not on this machine: bring the folders of its runs "
        "back and write the report again. Until then arms that need them are compared by their intervals, not by their "
        "answers to the same questions, and what else needs them (retention at a common gain, a law) leaves them out."
    ]


def _over_seeds(retentions: Sequence[np.ndarray]) -> Estimate:
    drawn = resample_seeds(np.stack(retentions), 0) if len(retentions) > 1 else retentions[0]
    return bounded("retention_matched", estimate(drawn))

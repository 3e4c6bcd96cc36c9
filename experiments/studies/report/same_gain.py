"""Rank ways to train at the same gain: what each has lost at the learning rate at which it gains as much as the others.

A way that learns little also keeps much, so the figures at the best rate of each do not rank them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from experiments.reporting.table import Row, Table
from experiments.reporting.text import format_number, p_text, rate_text, with_interval
from experiments.scorecard import gained
from experiments.scorecard.bootstrap import Array, bootstrap_p, estimate
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.inference import holm
from experiments.scorecard.pairwise import halves_of, other_questions
from experiments.scorecard.seeds import Measured, drawn_over_seeds
from experiments.scorecard.trajectory import value_at
from experiments.scorecard.units import Unit, UnitValues, larger_p, unit_values
from experiments.studies.config import StudyConfig
from experiments.studies.selection import DRAWS, ReportRow, arm_name, has_name, item_records
from experiments.studies.space import sets_rate
from experiments.studies.trial_results import has_records, result_of
from experiments.studies.trials import Trial

LEAST = 0.5  # of the highest gain: a way that gains less would set the common gain to next to nothing
ITSELF_AT_ONE = ("wise", "lines", "dial_depth")  # operations that change nothing at alpha 1
Points: TypeAlias = Mapping[str, Sequence[Measured]]  # the runs of each point by its name, in the order of the path
SHOWN = ("retention", "nfr", "kl", "kl_text")  # the table is sorted by the first
NOTE = (
    "Each way to train at the gain of {gain}, the highest that all reach. The figures are read on a straight line "
    "between the two learning rates (or shares alpha of the training's change) named here, on all items; 'base' is the "
    "untrained model. p: two-sided, paired by question, of the difference from {reference}; Holm's correction over the "
    "ways.{idle}"
)


@dataclass(frozen=True)
class GainPath:
    """The points of one way to train, from the base model on: its learning rates, or the steps of a post-hoc operation.

    names: of the points; gain: (points, 1 + draws); figures: by name, as gain. units: by figure the texts or replies
    of each point, with nothing for the base model.
    """

    names: tuple[str, ...]
    gain: Array
    figures: Mapping[str, Array]
    units: Mapping[str, Sequence[Mapping[Unit, tuple[float, float]]]] = field(default_factory=dict)

    @property
    def most(self) -> float:
        """The highest gain of its points."""
        return float(np.nanmax(self.gain[:, 0]))

    def units_at(self, figure: str, gain: float) -> dict[Unit, tuple[float, float]]:
        """Read the texts or replies of a figure where the path first reaches a gain, as the figure itself."""
        points = self.units.get(figure, ())
        if not points or any(point.keys() != points[0].keys() for point in points):
            return {}
        values = np.array([[point[unit][0] for unit in points[0]] for point in points])
        values = np.concatenate([np.zeros_like(values[:1]), values])
        found = value_at(np.repeat(self.gain[:, :1], values.shape[1], axis=1), values, gain).tolist()
        return {unit: (top, weight) for (unit, (_, weight)), top in zip(points[0].items(), found, strict=True)}

    def points_at(self, gain: float) -> str:
        """Name the two points between which the path first reaches a gain."""
        after = int(np.flatnonzero(self.gain[:, 0] >= gain)[0])
        return " to ".join(self.names[max(after - 1, 0) : after + 1])


def same_gain(study: StudyConfig, trials: Sequence[Trial], rows: Sequence[ReportRow], root: Path) -> Table | None:
    """Make a row per way to train: its figures at the highest gain that all ways reach, the highest retention first.

    A way has its trials at two or more learning rates, or an arm's `posthoc` operation at one or more alphas. None
    unless `report.select` is the learning rate, and at least two ways gained half of the highest gain, with item
    records of the same questions on this machine. The first way in the study's order is the reference. rows: those of
    the report.
    """
    select = study.report.select
    if select is None or not sets_rate(select, study.search[select]):
        return None
    found = _paths({**_of_rates(study, trials, root), **_of_alphas(study, rows, root)})
    most = max((path.most for path in found.values()), default=0.0)
    idle = [name for name, path in found.items() if not gained(path.gain) or path.most < LEAST * most]
    paths = {name: path for name, path in found.items() if name not in idle}
    if len(paths) < 2:
        return None
    gain = min(path.most for path in paths.values())
    shown = [name for name in SHOWN if all(name in path.figures for path in paths.values())]
    drawn = {n: {f: value_at(path.gain, path.figures[f], gain) for f in shown} for n, path in paths.items()}
    reference, *others = drawn
    units = {n: {f: path.units_at(f, gain) for f in shown} for n, path in paths.items()}
    p = {f: dict(zip(others, _adjusted(drawn, units, reference, others, f), strict=True)) for f in shown}
    lines: list[Row] = []
    for name in sorted(drawn, key=lambda n: -drawn[n]["retention"][0]):
        cells = [_cells(f, drawn[name][f], p[f].get(name)) for f in shown]
        lines.append((name, paths[name].points_at(gain), *(cell for pair in cells for cell in pair)))
    titles = (title for f in shown for title in (FIGURES[f].title, f"p, {FIGURES[f].title}"))
    why = "since no gain is outside its interval, or all are below half of the highest"
    left_out = f" Left out, {why}: {', '.join(idle)}." if idle else ""
    note = NOTE.format(gain=format_number(gain, True), reference=reference, idle=left_out)
    return Table("At the same gain", ("way to train", "between", *titles), tuple(lines), note, numbers=2 * len(shown))


def _of_rates(study: StudyConfig, trials: Sequence[Trial], root: Path) -> dict[str, Points]:
    """Group the complete trials by their picks without the rate, the lowest rate first; one rate alone is no path."""
    groups: dict[tuple[object, ...], list[Trial]] = {}
    keys = [key for key in study.search if key != study.report.select]
    for trial in trials:
        if trial.state == "complete" and trial.repeats is None and trial.runs and has_records(trial.runs, root):
            groups.setdefault(tuple(trial.picks[key] for key in keys), []).append(trial)
    names = [arm_name(study, group[0]) for group in groups.values()]  # in three digits: two ways may share one
    ways: dict[str, Points] = {}
    for name, group in zip(names, groups.values(), strict=True):
        own = name if names.count(name) == 1 else f"{name} (trial {group[0].number})"
        points = {_rate(t): _measured(t.runs, root) for t in sorted(group, key=_rate)}
        texts = [rate_text(rate) for rate in points]
        if len(points) > 1:
            ways[own] = {
                t if texts.count(t) == 1 else f"{r}": m for t, (r, m) in zip(texts, points.items(), strict=True)
            }
    return ways


def _of_alphas(study: StudyConfig, rows: Sequence[ReportRow], root: Path) -> dict[str, Points]:
    """Group the operations that have an alpha by arm and operation, the lowest alpha first.

    Of ITSELF_AT_ONE the arm is the point of alpha 1, unless the weights that were changed are of another step
    (`training.keep: best`).
    """
    made = {row.name: row for row in rows if row.records}
    ways: dict[str, dict[float, tuple[str, ReportRow]]] = {}
    for item in study.posthoc:
        if item.alpha is None or item.label not in made:
            continue
        points = ways.setdefault(f"{item.arm}, {item.op}", {})
        points[item.alpha] = (f"alpha {item.alpha:g}", made[item.label])
        arm = next((row for row in made.values() if has_name(row, item.arm)), None)
        if arm and item.op in ITSELF_AT_ONE and arm.result.steps == made[item.label].result.steps:
            points.setdefault(1.0, (f"{rate_text(arm.result.learning_rate)} itself", arm))
    return {
        way: {name: _measured(row.runs, root) for _, (name, row) in sorted(points.items(), key=lambda one: one[0])}
        for way, points in ways.items()
    }


def _measured(runs: Sequence[dict[str, Any]], root: Path) -> list[Measured]:
    return [item_records(run, root) for run in runs]


def _paths(ways: Mapping[str, Points]) -> dict[str, GainPath]:
    flat = {f"{way} {point}": measured for way, points in ways.items() for point, measured in points.items()}
    if other_questions(flat):
        return {}
    drawn = {name: drawn_over_seeds(measured, DRAWS, 0) for name, measured in flat.items()}
    units = {name: unit_values(measured) for name, measured in flat.items()}
    paths = {
        way: _path({point: drawn[f"{way} {point}"] for point in points}, [units[f"{way} {point}"] for point in points])
        for way, points in ways.items()
    }
    return {way: path for way, path in paths.items() if path is not None}


def _path(drawn: Mapping[str, Mapping[str, Array]], units: Sequence[UnitValues]) -> GainPath | None:
    """Begin at the base model. None if the new task or the kept tasks were not measured."""
    gain = next((name for name in GAINS if all(name in figures for figures in drawn.values())), None)
    shown = [name for name in SHOWN if all(name in figures for figures in drawn.values())]
    if gain is None or "retention" not in shown:
        return None
    points = {name: np.stack([figures[name] for figures in drawn.values()]) for name in (gain, *shown)}
    points = {name: np.concatenate([np.full_like(v[:1], FIGURES[name].unchanged), v]) for name, v in points.items()}
    read = {name: [own[name] for own in units] for name in points if all(name in own for own in units)}
    return GainPath(("base", *drawn), points.pop(gain), points, read)


def _adjusted(
    drawn: Mapping[str, Mapping[str, Array]],
    units: Mapping[str, UnitValues],
    reference: str,
    others: Iterable[str],
    figure: str,
) -> list[float]:
    own, halves = drawn[reference][figure], {n: halves_of(figure, units[n], units[reference]) for n in others}
    return holm([larger_p(bootstrap_p(drawn[n][figure] - own), halves[n]) for n in others])


def _cells(figure: str, values: Array, p: float | None) -> tuple[str, str]:
    row = FIGURES[figure]
    found = estimate(values.clip(*row.bounds))  # over seeds a draw can pass what no value can
    return with_interval(found, row.signed, row.places), "" if p is None else p_text(p)


def _rate(trial: Trial) -> float:
    return result_of(trial.runs[0]).learning_rate

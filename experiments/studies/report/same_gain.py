"""Rank ways to train at the same gain: what each has lost at the learning rate at which it gains as much as the others.

A way that learns little also keeps much, so the figures at the best rate of each do not rank them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.reporting.table import Row, Table
from experiments.reporting.text import format_number, p_text, rate_text, with_interval
from experiments.scorecard import gained
from experiments.scorecard.bootstrap import Array, bootstrap_p, estimate
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.inference import holm
from experiments.scorecard.pairwise import other_questions
from experiments.scorecard.seeds import drawn_over_seeds
from experiments.scorecard.trajectory import Trajectory, value_at
from experiments.studies.config import StudyConfig
from experiments.studies.selection import DRAWS, arm_name, has_records, item_records
from experiments.studies.space import sets_rate
from experiments.studies.trial import result_of
from experiments.studies.trials import Trial

SHOWN = ("retention", "kl", "kl_text")  # the table is sorted by the first
NOTE = (
    "Each way to train at the gain of {gain}, the highest that all reach at one of their learning rates. The figures "
    "are read on a straight line between the two rates named here ('base': the untrained model), on all items. p: "
    "two-sided, paired by question, of the difference from {reference}; Holm's correction over the ways.{idle}"
)


@dataclass(frozen=True)
class RatePath:
    """The points of one way to train: the base model, then a point per learning rate, the lowest first.

    rates: (points - 1,); gain: (points, 1 + draws); figures: by name, as gain.
    """

    rates: tuple[float, ...]
    gain: Array
    figures: Mapping[str, Array]

    def gained(self) -> bool:
        """Whether the highest gain is above 0 with its whole interval."""
        return gained(Trajectory((0,) * len(self.gain), self.gain, self.gain, self.gain))

    def rates_at(self, gain: float) -> str:
        """Name the two points between which the path first reaches a gain."""
        after = int(np.flatnonzero(self.gain[:, 0] >= gain)[0])
        names = ("base", *map(rate_text, self.rates))
        return " to ".join(names[max(after - 1, 0) : after + 1])


def same_gain(study: StudyConfig, trials: Sequence[Trial], root: Path) -> Table | None:
    """Make a row per way to train: its figures at the highest gain that all ways reach, the highest retention first.

    None unless `report.select` is the learning rate, and at least two ways gained something at two or more rates, with
    item records of the same questions on this machine. The first way in the study's order is the reference.
    """
    select = study.report.select
    if select is None or not sets_rate(select, study.search[select]):
        return None
    found = _paths(study, trials, root)
    idle = [name for name, path in found.items() if not path.gained()]
    paths = {name: path for name, path in found.items() if name not in idle}
    if len(paths) < 2:
        return None
    gain = min(float(np.nanmax(path.gain[:, 0])) for path in paths.values())
    shown = [name for name in SHOWN if all(name in path.figures for path in paths.values())]
    drawn = {n: {f: value_at(path.gain, path.figures[f], gain) for f in shown} for n, path in paths.items()}
    reference, *others = drawn
    p = {f: dict(zip(others, _adjusted(drawn, reference, others, f), strict=True)) for f in shown}
    rows: list[Row] = []
    for name in sorted(drawn, key=lambda n: -drawn[n]["retention"][0]):
        cells = [_cells(f, drawn[name][f], p[f].get(name)) for f in shown]
        rows.append((name, paths[name].rates_at(gain), *(cell for pair in cells for cell in pair)))
    titles = (title for f in shown for title in (FIGURES[f].title, f"p, {FIGURES[f].title}"))
    head = ("way to train", "between the rates", *titles)
    left_out = f" Without a gain outside its interval, and so left out: {', '.join(idle)}." if idle else ""
    note = NOTE.format(gain=format_number(gain, True), reference=reference, idle=left_out)
    return Table("At the same gain", head, tuple(rows), note, numbers=2 * len(shown))


def _paths(study: StudyConfig, trials: Sequence[Trial], root: Path) -> dict[str, RatePath]:
    """Group the complete trials by their picks without the rate; a group of one rate is no path."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.state == "complete" and trial.repeats is None and trial.runs and has_records(trial.runs, root):
            groups.setdefault(arm_name(study, trial), []).append(trial)
    groups = {name: sorted(group, key=_rate) for name, group in groups.items() if len({*map(_rate, group)}) > 1}
    records = {t.number: [item_records(run, root) for run in t.runs] for group in groups.values() for t in group}
    if other_questions({str(number): measured for number, measured in records.items()}):
        return {}
    drawn = {number: drawn_over_seeds(measured, DRAWS, 0) for number, measured in records.items()}
    paths = {name: _path(group, [drawn[t.number] for t in group]) for name, group in groups.items()}
    return {name: path for name, path in paths.items() if path is not None}


def _path(group: Sequence[Trial], drawn: Sequence[Mapping[str, Array]]) -> RatePath | None:
    """None if the new task or the kept tasks were not measured."""
    gain = next((name for name in GAINS if all(name in figures for figures in drawn)), None)
    shown = [name for name in SHOWN if all(name in figures for figures in drawn)]
    if gain is None or "retention" not in shown:
        return None
    base = {name: np.full_like(drawn[0][gain], FIGURES[name].unchanged) for name in (gain, *shown)}
    points = {name: np.stack([base[name], *(figures[name] for figures in drawn)]) for name in base}
    return RatePath(tuple(map(_rate, group)), points.pop(gain), points)


def _adjusted(
    drawn: Mapping[str, Mapping[str, Array]], reference: str, others: Iterable[str], figure: str
) -> list[float]:
    return holm([bootstrap_p(drawn[name][figure] - drawn[reference][figure]) for name in others])


def _cells(figure: str, values: Array, p: float | None) -> tuple[str, str]:
    row = FIGURES[figure]
    return with_interval(estimate(values), row.signed, row.places), "" if p is None else p_text(p)


def _rate(trial: Trial) -> float:
    return result_of(trial.runs[0]).learning_rate

"""Make the rows of a study's report: the best variant of each arm, chosen on half of the items, measured on the rest.

If the items that choose the best learning rate were also reported, every arm would look too good, and an arm with more
learning rates more so. So items are split by the parity of a hash of their id: even ones choose, odd ones are reported.
Both forms of a question are in the same half.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.common.errors import DamagedError
from experiments.records import ArmResult, Estimate, Record, read_records
from experiments.reporting.text import label, rate_text
from experiments.runs.result_file import RESULT, check_files, floor_file
from experiments.scorecard import (
    SignificantPairs,
    aa_floor,
    mean_card,
    mean_estimate,
    over_seeds,
    scorecard,
    significant_pairs,
)
from experiments.scorecard.halves import of_half
from experiments.scorecard.pairwise import other_questions
from experiments.scorecard.seeds import Measured
from experiments.studies.config import StudyConfig
from experiments.studies.space import picks_words, sets_rate
from experiments.studies.trial import TrialFailed, figure
from experiments.studies.trial_results import has_records, record_files, result_of
from experiments.studies.trials import Trial

DRAWS = 10_000  # resamples per scorecard of a half
LEAST_DRAWS = 100  # where only values count


@dataclass
class ReportRow:
    """The chosen trial of an arm, with the figures that the report shows.

    name: different for each row. Arms without names have the number of their trial: `#7 lerp layers=4`. A learning rate
    that is searched and not selected is at the end of the name, and not in result.arm: `label` adds it. runs: one per
    seed. candidates: trials from which this one was chosen. records: whether the item records are on this machine.
    halves: whether `result` is measured on the items that did not choose.
    """

    name: str
    trial: Trial
    runs: list[dict[str, Any]]
    result: ArmResult
    candidates: int
    records: bool
    halves: bool


def choose(study: StudyConfig, trials: Sequence[Trial], root: Path) -> list[ReportRow]:
    """Return one row per combination of picks other than `report.select`, in the order of their trials.

    Without `report.select` every complete trial is a row, measured on all items. If item records are not on this
    machine, all items choose and are reported, and `halves` is False.
    """
    groups: dict[tuple[object, ...], list[Trial]] = {}
    keys = [key for key in study.search if key != study.report.select]
    for trial in trials:
        if trial.state == "complete" and trial.runs and trial.repeats is None:
            own = () if study.report.select else (trial.number,)
            groups.setdefault((*(trial.picks[key] for key in keys), *own), []).append(trial)
    names = [_names(study, group[0]) for group in groups.values()]
    nameless = not study.report.select and not any(dimension.kind == "arms" for dimension in study.search.values())
    arms = []
    for (name, rate), group in zip(names, groups.values(), strict=True):
        if nameless:  # the trial's number is the shortest name
            arms.append(_best(study, f"#{group[0].number} {name}{rate}", group, root))
            continue
        numbered = name if names.count((name, rate)) == 1 else f"{name} (trial {group[0].number})"
        arm = _best(study, numbered, group, root)
        arms.append(replace(arm, name=numbered + rate))
    return arms


def arm_name(study: StudyConfig, trial: Trial, without: str | None = None) -> str:
    """Return the picks of a trial as a name: named arms and words as they are, numbers as dimension=value.

    The learning rate is last, as `label` writes it. without: a further dimension to leave out. Without any dimension it
    is the name of the base's arm.
    """
    return "".join(_names(study, trial, without))


def _names(study: StudyConfig, trial: Trial, without: str | None = None) -> tuple[str, str]:
    """Return `arm_name` in two parts: without the learning rate, and the rate after a space if it is searched."""
    keys = [key for key in study.search if key not in (study.report.select, without)]
    rates = [key for key in keys if sets_rate(key, study.search[key])]
    words = picks_words(study.search, {key: trial.picks[key] for key in keys if key not in rates})
    result = result_of(trial.runs[0])
    return words or result.arm, f" {rate_text(result.learning_rate)}" if rates else ""


def arm_names(study: StudyConfig, trials: Sequence[Trial], without: str | None = None) -> list[str]:
    """Return `arm_name` of trials of different arms: as numbers have three digits there, two may share a name.

    These have the number of their trial too.
    """
    names = [arm_name(study, trial, without) for trial in trials]
    return [
        name if names.count(name) == 1 else f"{name} (trial {trial.number})"
        for name, trial in zip(names, trials, strict=True)
    ]


def has_name(arm: ReportRow, name: str) -> bool:
    """Whether `name` in a study's YAML is this row's, with or without the trial's number."""
    return name in (arm.name, re.sub(r"^#\d+ ", "", arm.name))


def report_row(
    name: str, trial: Trial, runs: list[dict[str, Any]], candidates: int, halves: bool, root: Path
) -> ReportRow:
    """Make a row with the figures of its runs, measured on the reported half of the items, or on all of them.

    With several seeds, figures are means. Their intervals resample seeds and questions (`over_seeds`); those of figures
    that `over_seeds` does not have, and all intervals without item records, are those of `mean_estimate`. The
    trajectory is measured on the same items.
    """
    records = has_records(runs, root)
    own = [result_of(run) for run in runs]
    if halves:
        own = [replace(r, trajectory=half_trajectory(run, root)) for r, run in zip(own, runs, strict=True)]
    result = mean_result(own)
    if halves or records:  # computed again from the items: old runs get the intervals of today's code
        half, measured = False if halves else None, [item_records(run, root) for run in runs]
        card = mean_card([_card(run, root, half) for run in runs])
        card |= _of_seeds(trial, measured, half) if len(runs) > 1 else {}
        *before, last = result.trajectory or [{}]
        last = {name: card.get(name, value) for name, value in last.items()}
        kept = {} if halves else result.scorecard  # figures that need more than the last records: those of a stream
        result = replace(result, scorecard=kept | card, trajectory=[*before, last] if last else [])
    return ReportRow(name, trial, runs, replace(result, arm=name), candidates, records, halves)


def _card(run: dict[str, Any], root: Path, half: bool | None, draws: int = DRAWS) -> dict[str, Estimate]:
    """Return the figures of a half, or of all items, with the A/A floor if the base's answers to it are here."""
    base, after = (of_half(records, half) for records in item_records(run, root))
    asked_again = floor_file(root / str(run["folder"]))
    floor = of_half(read_records(asked_again), half) if asked_again else []
    return scorecard(base, after, draws) | (aa_floor(base, floor, after, draws) if floor else {})


def _of_seeds(trial: Trial, measured: Sequence[Measured], half: bool | None) -> dict[str, Estimate]:
    try:
        return over_seeds(measured, DRAWS, choosing=half)
    except ValueError as error:
        raise DamagedError(f"trial {trial.number}: {error}") from error


def significant_arms(arms: Sequence[ReportRow], root: Path) -> tuple[SignificantPairs | None, str]:
    """Return the pairs of arms that differ significantly on the items of their figures, by name, and "".

    None if item records are missing, or if the arms answered different questions; the text then says which.
    """
    if not all(arm.records for arm in arms) or len({arm.halves for arm in arms}) > 1:
        return None, ""
    measured = {label(arm.result): [item_records(run, root) for run in arm.runs] for arm in arms}
    if apart := other_questions(measured):
        return None, apart
    return significant_pairs(measured, DRAWS, choosing=False if any(arm.halves for arm in arms) else None), ""


def item_records(run: dict[str, Any], root: Path) -> tuple[list[Record], list[Record]]:
    """Return the item records of the base and of the run's last step."""
    base, after = (read_records(path) for path in record_files(run, root))
    return base, after


def half_records(run: dict[str, Any], root: Path, choosing: bool) -> tuple[list[Record], list[Record]]:
    """Return `item_records` of the half that chooses, or of the reported half."""
    base, after = item_records(run, root)
    return of_half(base, choosing), of_half(after, choosing)


def half_trajectory(run: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """Return the run's trajectory on the reported half of the items. A step without records is left out."""
    points, before = [], half_records(run, root, False)[0]
    for point in result_of(run).trajectory:
        after = record_files(run, root, point["step"])[1]
        if point["step"] and not after.is_file():
            continue
        now = of_half(read_records(after), False) if point["step"] else before
        card = scorecard(before, now, LEAST_DRAWS)
        points.append({"step": point["step"], **{name: card[name] for name in point if name in card}})
    return points


def check_records(trials: Sequence[Trial], root: Path) -> None:
    """Raise DamagedError if the records of a run that is on this machine are not those of its result."""
    for run in (run for trial in trials for run in trial.runs):
        file = record_files(run, root)[1].parent / RESULT
        if file.is_file():
            check_files(file)


def mean_result(results: Sequence[ArmResult]) -> ArmResult:
    """Return the mean over seeds, with intervals of items and of the spread of the seeds (`mean_estimate`).

    The trajectory has the steps at which all seeds were measured.
    """
    first = results[0]
    cost = {name: math.fsum(r.cost.get(name, math.nan) for r in results) / len(results) for name in first.cost}
    trajectory = []
    steps = [{point["step"]: point for point in r.trajectory} for r in results]
    for step in [step for step in steps[0] if all(step in of_run for of_run in steps)]:
        points = [of_run[step] for of_run in steps]
        shared = [n for n in points[0] if n != "step" and all(n in p for p in points)]
        trajectory.append({"step": step, **{n: mean_estimate([p[n] for p in points]) for n in shared}})
    return replace(first, scorecard=mean_card([r.scorecard for r in results]), cost=cost, trajectory=trajectory)


def _best(study: StudyConfig, name: str, group: list[Trial], root: Path) -> ReportRow:
    objective = study.objectives[0]
    sign = 1 if objective.direction == "maximize" else -1
    split = study.report.select is not None and all(has_records(trial.runs, root) for trial in group)

    def score(trial: Trial, split: bool) -> float:
        result = mean_result([result_of(run) for run in trial.runs])
        if split:
            result = replace(result, scorecard=mean_card([_card(run, root, True, LEAST_DRAWS) for run in trial.runs]))
        try:
            return sign * figure(result, objective.figure)
        except (TrialFailed, ValueError):  # this half has no such item
            return -math.inf

    if len(group) == 1:
        return report_row(name, group[0], group[0].runs, 1, split, root)
    scores = [score(trial, split) for trial in group]
    if split and max(scores) == -math.inf:  # no half has this figure (those of a stream): all items choose
        split, scores = False, [score(trial, False) for trial in group]
    feasible = [trial.feasible for trial in group]
    trial = group[max(range(len(group)), key=lambda i: (feasible[i], scores[i]))]
    return report_row(name, trial, trial.runs, len(group), split, root)

"""One row per arm of a study: its best variant, chosen on half of the items and reported on the other half.

Choosing the best of several learning rates on the items that are then reported would flatter every arm, and those
with more learning rates most. So items are split by the parity of a hash of their id: even ones choose, odd ones are
reported. Both forms of a question fall into the same half.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.records import ArmResult, Estimate, Record, read_records
from experiments.scorecard import scorecard
from experiments.studies.attempts import Trial
from experiments.studies.config import StudyConfig
from experiments.studies.trial import TrialFailed, figure, result_of

DRAWS = 2_000  # resamples per scorecard of a half


@dataclass
class Arm:
    """The chosen trial of an arm. result: its figures as they are reported; halves: whether from unused items."""

    name: str
    trial: Trial
    result: ArmResult
    candidates: int
    halves: bool


def choose(study: StudyConfig, trials: Sequence[Trial], root: Path) -> list[Arm]:
    """One Arm per combination of picks other than `report.select`, in the order of their trials.

    Without `report.select` every complete trial is an arm, with the figures of all items. Where item records are not
    on this machine, choice and figures are those of all items, and `halves` is False.
    """
    arms: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.state == "complete" and trial.runs:
            arms.setdefault(arm_name(study, trial), []).append(trial)
    return [_best(study, name, group, root) for name, group in arms.items()]


def arm_name(study: StudyConfig, trial: Trial) -> str:
    """The picks that tell arms apart: a named arm by its name alone, other dimensions as name=value."""
    keys = [key for key in study.search if key != study.report.select]
    named = [str(trial.picks[key]) for key in keys if study.search[key].kind == "arms"]
    others = [f"{key.split('.')[-1]}={_short(trial.picks[key])}" for key in keys if study.search[key].kind != "arms"]
    return " ".join([*named, *others]) or f"trial {trial.number}"


def even(record: Record) -> bool:
    """Whether an item belongs to the half that chooses. The same for all runs, forms and machines."""
    return hashlib.sha256(f"{record.suite}/{record.task}/{record.item}".encode()).digest()[0] % 2 == 0


def mean_result(results: Sequence[ArmResult]) -> ArmResult:
    """The mean over seeds. Interval ends are means too: those of items, which the mean over seeds makes no wider."""
    first = results[0]
    names = [name for name in first.scorecard if all(name in r.scorecard for r in results)]
    card = {name: _mean([r.scorecard[name] for r in results]) for name in names}
    cost = {name: math.fsum(r.cost.get(name, math.nan) for r in results) / len(results) for name in first.cost}
    trajectory = []
    for points in zip(*(r.trajectory for r in results), strict=False):
        shared = [n for n in points[0] if n != "step" and all(n in p for p in points)]
        trajectory.append({"step": points[0]["step"], **{n: _mean([p[n] for p in points]) for n in shared}})
    return replace(first, scorecard=card, cost=cost, trajectory=trajectory)


def _best(study: StudyConfig, name: str, group: list[Trial], root: Path) -> Arm:
    objective = study.objectives[0]
    sign = 1 if objective.direction == "maximize" else -1
    split = study.report.select is not None and all(_has_records(trial, root) for trial in group)

    def score(trial: Trial) -> float:
        try:
            return sign * figure(_figures(trial, root, True) if split else _whole(trial), objective.figure)
        except (TrialFailed, ValueError):  # this half has no such item
            return -math.inf

    trial = max(group, key=score) if len(group) > 1 else group[0]
    result = _figures(trial, root, False) if split else _whole(trial)
    return Arm(name, trial, replace(result, arm=name), len(group), split)


def _whole(trial: Trial) -> ArmResult:
    return mean_result([result_of(run) for run in trial.runs])


def _figures(trial: Trial, root: Path, choosing: bool) -> ArmResult:
    """The trial's result with the scorecard of one half of the items."""
    results = []
    for run in trial.runs:
        result, (base, after) = result_of(run), _records(run, root)
        first, second = (list(_half(read_records(path), choosing)) for path in (base, after))
        results.append(replace(result, scorecard=scorecard(first, second, DRAWS)))
    return mean_result(results)


def _half(records: Iterable[Record], choosing: bool) -> Iterable[Record]:
    return (record for record in records if even(record) == choosing)


def _has_records(trial: Trial, root: Path) -> bool:
    return all(path.is_file() for run in trial.runs for path in _records(run, root))


def _records(run: dict[str, object], root: Path) -> tuple[Path, Path]:
    """Item records of the base and of the arm after its last step."""
    result, folder = result_of(run), root / str(run["folder"])
    last = folder / "arms" / f"{result.arm}-{result.learning_rate:g}" / f"items-{result.steps}.jsonl"
    return folder / "base" / "items.jsonl", last


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(values) else None

    value = mean([e.value for e in estimates])
    return Estimate(
        math.nan if value is None else value, mean([e.low for e in estimates]), mean([e.high for e in estimates])
    )


def _short(pick: object) -> str:
    return f"{pick:.3g}" if isinstance(pick, float) else str(pick)

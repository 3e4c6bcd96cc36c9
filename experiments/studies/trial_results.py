"""What a trial gave: its values, the results of its runs, and where their item records are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.records import ArmResult
from experiments.runs.result_file import RESULT, is_result, result_values


@dataclass
class TrialOutcome:
    """What a trial gave.

    values: one per objective. constraints: name -> number, satisfied at 0 or below. runs: see `trial.run_record`.

    figures: the headline of the scorecard, means over the seeds. url: of the trial's MLflow run. pictures: files by the
    names that optuna-dashboard shows; root: where it finds them.
    """

    values: list[float] = field(default_factory=list)
    constraints: dict[str, float] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    url: str = ""
    pictures: dict[str, Path] = field(default_factory=dict)
    root: Path | None = None


def result_of(run: Mapping[str, Any]) -> ArmResult:
    return ArmResult.from_dict(run["result"])


def record_files(run: dict[str, Any], root: Path, step: int | None = None) -> tuple[Path, Path]:
    """Return the files of the base's item records and of the run's at a step (default: the last)."""
    from experiments.posthoc.run import result_folder  # loads torch; `status` needs none

    result, folder = result_of(run), root / str(run["folder"])
    own = folder / "arms" / f"{result.arm}-{result.learning_rate:g}"
    own = result_folder(folder, result) if result.operation else own
    return folder / "base" / "items.jsonl", own / f"items-{result.steps if step is None else step}.jsonl"


def has_records(runs: Sequence[dict[str, Any]], root: Path) -> bool:
    """Whether the item records of runs are on this machine, those of the results that the study has.

    A machine that began a trial has records of its own, and perhaps a result, if another one took the trial over.
    """
    return all(_is_whole(record_files(run, root), run["result"]) for run in runs)


def _is_whole(files: tuple[Path, Path], result: dict[str, Any]) -> bool:
    values = result_values(files[1].parent / RESULT)
    return bool(values) and is_result(values, result) and all(file.is_file() for file in files)

"""What a study does to trained weights after its last trial: `posthoc:` of its YAML.

The result of each operation lies beside the run it was made from, where `experiments.posthoc` finds it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError, RunError
from experiments.posthoc.run import operation_name, posthoc, result_folder
from experiments.studies.config import Posthoc, StudyConfig
from experiments.studies.selection import Arm, called, choose, reported
from experiments.studies.trial import result_of
from experiments.studies.trials import Trial


def run_posthoc(study: StudyConfig, trials: Sequence[Trial], root: Path, say: Callable[[str], None] = print) -> None:
    """Of a study that has ended: do what is missing to the chosen trial of each arm; one that cannot be done is told,
    and left out. While another machine runs a trial nothing is done: the choice may change."""
    if not study.posthoc or any(trial.state == "running" for trial in trials):
        return
    chosen = choose(study, trials, root)
    for item in study.posthoc:
        arm = next((arm for arm in chosen if called(arm, item.arm)), None)
        if arm is None:
            say(f"{item.label}: arm {item.arm!r} has no complete trial")
            continue
        try:
            for run in arm.runs:
                result, alphas = result_of(run), None if item.alpha is None else [item.alpha]
                folder = root / run["folder"]
                posthoc(folder, result.arm, result.learning_rate, item.op, alphas, say=say, study=study.name)
        except (ConfigError, RunError) as error:
            say(f"{item.label}: {error}")


def posthoc_arms(study: StudyConfig, arms: Sequence[Arm], root: Path) -> list[Arm]:
    """The rows of the operations that were done, each with the items of the arm that it was made from."""
    found = []
    for item in study.posthoc:
        for arm in (arm for arm in arms if called(arm, item.arm)):
            runs = [_after(item, run, root) for run in arm.runs]
            known = [run for run in runs if run is not None]
            if len(known) == len(runs):
                found.append(reported(item.label, arm.trial, known, arm.candidates, arm.halves, root))
    return found


def _after(item: Posthoc, run: dict[str, Any], root: Path) -> dict[str, Any] | None:
    """The run with the operation's result instead of its own; None where it was not done."""
    expected = replace(result_of(run), operation=operation_name(item.op, item.alpha))
    path = result_folder(root / run["folder"], expected) / "result.json"
    return {**run, "result": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else None

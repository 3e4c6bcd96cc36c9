"""Check a study's `posthoc` operations at its start, and apply them to trained weights after its last trial.

The result of each operation is in the folder of its run, where `experiments.posthoc` finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError, MachineError, RunError
from experiments.common.section import nearest
from experiments.config import ExperimentConfig
from experiments.posthoc.checks import without_form
from experiments.posthoc.run import operation_name, posthoc, result_folder
from experiments.runs.result_file import RESULT, check_operation_of, whole_results
from experiments.studies.config import Posthoc, StudyConfig
from experiments.studies.selection import ReportRow, choose, has_name, report_row
from experiments.studies.trial_results import record_files, result_of
from experiments.studies.trials import Trial


def check_posthoc(study: StudyConfig, configs: Sequence[ExperimentConfig], source: str, begun: bool = False) -> None:
    """Raise ConfigError for an operation on no arm, of a name that is taken, or that no trial of its arm can have.

    The last would be said after the last trial; one that has begun with it (`begun`) goes on.
    """
    arms = dict.fromkeys(config.arms[0].name for config in configs)
    names = [*arms, *(one.label for one in study.posthoc)]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"{source}: posthoc: two rows of the report would be called {twice!r}: give one another name")
    for one in study.posthoc:
        name = one.arm if one.arm in arms else one.arm.split(" ")[0]
        faults = [_without_weights(config, one) for config in configs if config.arms[0].name == name]
        if not faults:
            raise ConfigError(f"{source}: posthoc: unknown arm {one.arm!r}: {nearest(one.arm, arms)}")
        if all(faults) and not begun:
            raise ConfigError(f"{source}: posthoc: {faults[0]}")


def _without_weights(config: ExperimentConfig, one: Posthoc) -> str:
    if config.training.keep == "none":
        return f"{one.op} of {one.arm!r} reads trained weights, and training.keep is none: set it to local, or to last"
    return without_form(one.op, config.arms[0], one.alpha)


def apply_posthoc(study: StudyConfig, trials: Sequence[Trial], root: Path, say: Callable[[str], None] = print) -> None:
    """Apply to the chosen trial of each arm the operations that are missing. One that fails is reported and skipped.

    Does nothing while another machine runs a trial, because the choice may change.
    """
    if not study.posthoc or any(trial.state == "running" for trial in trials):
        return
    chosen = choose(study, trials, root)
    for item in study.posthoc:
        arm = next((arm for arm in chosen if has_name(arm, item.arm)), None)
        if arm is None:
            rows = ", ".join(arm.name for arm in chosen) or "none"
            say(f"{item.label}: no complete trial is called {item.arm!r} in the report; its rows are: {rows}")
            continue
        try:
            for run in arm.runs:
                if _comes_with_result(item, run, root):
                    continue
                result, alphas = result_of(run), None if item.alpha is None else [item.alpha]
                folder = root / run["folder"]
                posthoc(folder, result.arm, result.learning_rate, item.op, alphas, say=say, study=study.name)
        except MachineError:
            raise
        except (ConfigError, RunError) as error:
            say(f"{item.label}: {error}")


def _comes_with_result(item: Posthoc, run: dict[str, Any], root: Path) -> bool:
    """Whether an arm has the operation's result but no weights: it comes from an archive, which has none."""
    return not (record_files(run, root)[1].parent / "trained").is_dir() and _after(item, run, root) is not None


def posthoc_rows(study: StudyConfig, arms: Sequence[ReportRow], root: Path) -> list[ReportRow]:
    """Return the report's rows of the operations that were applied, each on the same items as the row of its arm."""
    found = []
    for item in study.posthoc:
        for arm in (arm for arm in arms if has_name(arm, item.arm)):
            runs = [_after(item, run, root) for run in arm.runs]
            known = [run for run in runs if run is not None]
            if len(known) == len(runs):
                found.append(report_row(item.label, arm.trial, known, arm.candidates, arm.halves, root))
    return found


def of_other_steps(rows: Sequence[ReportRow]) -> Iterator[str]:
    """Say which operations changed the weights of another step than that of their arm's figures (`keep: best`)."""
    trained = {row.trial.number: row for row in rows if not row.result.operation}
    for row in rows:
        if row.result.operation and (arm := trained.get(row.trial.number)):
            of, has = _steps(row), _steps(arm)
            if of != has:
                yield (
                    f"{row.name}: made of the weights of step {of} (training.keep: best), and {arm.name} has the "
                    f"figures of step {has}"
                )


def _steps(row: ReportRow) -> str:
    """Name the last step of each seed."""
    return ", ".join(str(result_of(run).steps) for run in row.runs)


def _after(item: Posthoc, run: dict[str, Any], root: Path) -> dict[str, Any] | None:
    """Return the run with the operation's result in place of its own, None if the operation was not applied.

    Raises DamagedError for a result of other weights or records than the run has.
    """
    expected = replace(result_of(run), operation=operation_name(item.op, item.alpha))
    path = result_folder(root / run["folder"], expected) / RESULT
    if not path.is_file():
        return None
    (result,) = whole_results([path])
    check_operation_of(path, expected, [record_files(run, root)[1].parent])
    return {**run, "result": result.to_dict()}

"""Track a result of `experiments.posthoc` in MLflow: a run below the experiment's, with the arm's run in its tags."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from experiments.common.files import read_note, write_json
from experiments.common.printable import escaped
from experiments.records import ArmResult
from experiments.reporting.tables import arms_table
from experiments.reporting.text import interval_tags
from experiments.runs.baseline import headline
from experiments.runs.prepared import Prepared
from experiments.tracking.journal import Journal, find
from experiments.tracking.reap import may_live
from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker


def measure_tracked(
    prepared: Prepared,
    tracker: Tracker,
    model: PreTrainedModel,
    result: ArmResult,
    folder: Path,
    options: Mapping[str, Any],
    changed: Mapping[Path, str],
) -> None:
    """Measure a model as the arms were, and write result and records to `folder`, in an MLflow run of kind `posthoc`.

    changed: the arms whose weights it has, see `write_result`. options: operation, alpha and others, as tags and params
    of the run. The run's journal is in `folder`, so that `sync` of the experiment's folder sends it too. A run that
    broke off is continued.
    """
    with _run(tracker, prepared.folder, result, folder, options) as run:
        prepared.measure(model, result, folder, changed)
        _log(run, result, folder)


def end_tracked(run_folder: Path, result: ArmResult, folder: Path, options: Mapping[str, Any]) -> None:
    """End the run of a result on disk if its process died before the end of the run."""
    if not cut_off(folder):
        return
    tracker = Tracker(run_folder.parent.parent, str(experiment_of(folder)))
    with _run(tracker, run_folder, result, folder, options) as run:
        _log(run, result, folder)


def cut_off(folder: Path) -> bool:
    """Whether a run has a journal here but did not finish, and no process works on it."""
    journal = _journal(folder)
    if journal is None:
        return False
    if not journal.ended():
        return not may_live(journal)
    end = journal.last("end")
    return end is not None and end["status"] != "FINISHED"


@contextlib.contextmanager
def _run(
    tracker: Tracker, run_folder: Path, result: ArmResult, folder: Path, options: Mapping[str, Any]
) -> Iterator[Run]:
    arm = f"{result.arm}-{result.learning_rate:g}"
    source = run_of(run_folder / "arms" / arm, tracker.uri)
    known = {name: str(value) for name, value in options.items() if value not in (None, "")}
    with tracker.run(
        result.label,
        kind="posthoc",
        parent=_parent_id(run_folder),
        params={"arm": result.arm, "method": result.method, "learning_rate": result.learning_rate, **known},
        tags={**known, "source_arm": arm, **({"source_run": source} if source else {})},
        run_id=read_note(folder / "mlflow.json").get("run_id"),
        folder=folder,
        note=lambda run_id: write_json(folder / "mlflow.json", {"run_id": run_id}),
    ) as run:
        yield run


def _log(run: Run, result: ArmResult, folder: Path) -> None:
    figures = {name: estimate.value for name, estimate in headline(result.scorecard).items()}
    run.log_new(figures | {f"cost/{name}": value for name, value in result.cost.items()}, result.steps)
    run.log_file(folder / f"items-{result.steps}.jsonl", "records")
    run.log_file(folder / "result.json", "scorecard")
    run.log_note(escaped(f"{result.operation}: nothing was trained for it\n\n{arms_table([result]).markdown()}"))
    run.set_tags(interval_tags(result.scorecard))


def run_of(folder: Path, uri: str) -> str | None:
    """Return a store's id of the run whose journal is in a folder; the journal's id if the store has none yet."""
    journal = _journal(folder)
    return (journal.delivered(uri).run_id or journal.run) if journal else None


def experiment_of(folder: Path) -> str | None:
    """Return the MLflow experiment of the run in a folder; trials of a study have the study's."""
    journal = _journal(folder)
    start = journal.last("start") if journal else None
    return str(start["experiment"]) if start else None


def _parent_id(folder: Path) -> str | None:
    """Return the id by which every store finds the experiment's run."""
    journal = _journal(folder)
    return journal.run if journal else read_note(folder / "mlflow.json").get("run_id")


def _journal(folder: Path) -> Journal | None:
    run_id = read_note(folder / "mlflow.json").get("run_id")
    return find(folder, run_id) if run_id else None

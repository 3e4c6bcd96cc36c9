"""Fetch the item records of trials that ran on other machines, from the artifacts of their runs in MLflow.

The study's storage has the result of each trial. A result that is downloaded must be that one, and the records those
that it was made from, by their digests. What is missing or damaged stays away, as if no store had it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.common.errors import BenchError
from experiments.common.files import write_text
from experiments.common.hashing import file_digest
from experiments.common.yaml_values import dump_yaml
from experiments.runs.result_file import BASE_ITEMS, MADE_FROM, RESULT, is_result, result_values
from experiments.studies.archive import run_of
from experiments.studies.config import StudyConfig
from experiments.studies.trial_results import record_files
from experiments.studies.trials import Trial
from experiments.tracking.elsewhere import SharedStore


def fetch_runs(study: StudyConfig, trials: Sequence[Trial], root: Path, say: Callable[[str], None] = print) -> None:
    """Fetch what is not below root of the runs of complete trials: base records, item records, result, config.

    Does nothing without MLFLOW_TRACKING_URI. A file that is there stays, and a run of which one is another is left.
    """
    store, complete = SharedStore.of(root), [trial for trial in trials if trial.state == "complete"]
    lacking = {str(run["folder"]): (trial, run) for trial in complete for run in trial.runs if not _is_here(run, root)}
    if not lacking or not store.is_shared:
        return
    fetched = [folder for folder, (trial, run) in lacking.items() if _fetch(store, study, trial, run, root)]
    say(f"{study.name}: records of {len(fetched)} of {len(lacking)} runs on other machines are fetched from MLflow")


def _is_here(run: dict[str, Any], root: Path) -> bool:
    base, after = record_files(run, root)
    return base.is_file() and after.is_file() and (after.parent / RESULT).is_file()


def _fetch(store: SharedStore, study: StudyConfig, trial: Trial, run: dict[str, Any], root: Path) -> bool:
    folder, arm = str(run["folder"]), record_files(run, root)[1].parent.name
    if not run_of(f"{folder}/config.yaml"):
        return False
    root.mkdir(parents=True, exist_ok=True)
    for found in store.runs(kind="arm", run_folder=Path(folder).name):
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            part = Path(scratch) / folder
            if _download(store, found, part, arm, run["result"]):
                _write_config(study, trial, run, part)
                return _place(part, root / folder, arm)
    return False


def _download(store: SharedStore, found: Any, part: Path, arm: str, expected: dict[str, Any]) -> bool:
    """Download the result and records of an arm's run to the run folder `part`. Returns whether they are those."""
    result = part / "arms" / arm / RESULT
    for folder in (result.parent, part / "base"):
        folder.mkdir(parents=True)
    if not store.fetch(found.info.run_id, f"scorecard/{RESULT}", result):
        return False
    try:
        values = result_values(result)
    except BenchError:
        return False
    if not is_result(values, expected):
        return False
    own = f"arms/{arm}/items-"
    wanted = [
        name
        for name in values.get(MADE_FROM, {})
        if name == BASE_ITEMS or (name.startswith(own) and name.count("/") == own.count("/"))
    ]
    if not {BASE_ITEMS, f"{own}{expected.get('steps')}.jsonl"} <= set(wanted):
        return False
    return all(_whole(store, found, part / name, name, values[MADE_FROM][name]) for name in wanted)


def _whole(store: SharedStore, found: Any, to: Path, name: str, digest: str) -> bool:
    """Download a file of this digest. The base's records are in the run above, or here if a trial is one run."""
    runs = [found.info.run_id, *filter(None, [found.data.tags.get("mlflow.parentRunId")])]
    places = [(run, BASE_ITEMS) for run in runs] if name == BASE_ITEMS else [(runs[0], f"records/{to.name}")]
    return any(store.fetch(*place, to) and file_digest(to) == digest for place in places)


def _write_config(study: StudyConfig, trial: Trial, run: dict[str, Any], part: Path) -> None:
    """Write the config, if this version of the bench makes the same of the trial's picks."""
    name, _, digest = part.name.rpartition("-")
    config = study.run_config(trial.picks, 0, run["seed"]).model_copy(update={"name": name})
    if config.digest() == digest:
        write_text(part / "config.yaml", dump_yaml(config.to_dict()))


def _place(part: Path, folder: Path, arm: str) -> bool:
    """Move the files of a run folder to another one, the result last. False if that one has others, or is in use."""
    from experiments.runs.run import only_one  # loads torch; `status` needs none

    last = Path("arms", arm, RESULT)
    names = sorted((path.relative_to(part) for path in part.rglob("*") if path.is_file()), key=lambda n: n == last)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(folder):
            here = [name for name in names if (folder / name).is_file()]
            if any(file_digest(folder / name) != file_digest(part / name) for name in here):
                return False
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).replace(folder / name)
    except BenchError:
        return False
    return True

"""Find the files of samples that lm_eval wrote for one model, and check that they are whole.

Below its output path lm_eval writes a folder for each model, with `samples_<task>_<date>.jsonl` for each task and one
JSON file of results with the same date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.files import parse_json

SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT.+)\.jsonl")
RESULTS = re.compile(r".+_(?P<date>\d{4}-\d\d-\d\dT.+)\.json")


def latest_files(path: Path) -> dict[str, Path]:
    """Return the latest file of samples of each task: `path` itself, or the files below it.

    Raises ValueError if there are none, or if they are of several models or of a run of lm_eval that did not finish.
    """
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no samples_*.jsonl: run lm_eval with --log_samples and --output_path")
    latest: dict[str, tuple[str, Path]] = {}
    for file in files:
        task, date = _name(file)
        latest[task] = max(latest.get(task, ("", file)), (date, file))
    _check_one_model(path, files)
    found = {task: file for task, (_, file) in sorted(latest.items())}
    _check_newest(found)
    return found


def measured_apart(path: Path) -> str:
    """Say if tasks of a folder were measured by several runs of lm_eval; empty if one measured all.

    Only who trained the model knows whether it is the same one in all: its name and its arguments are.
    """
    dates = sorted((_name(file)[1], task) for task, file in latest_files(path).items())
    (first, old), (last, new) = dates[0], dates[-1]
    if first == last:
        return ""
    return (
        f"measured by several runs of lm_eval ({old} {first[:16]}, {new} {last[:16]}): if the model was trained or "
        "replaced in between, measure all tasks again, with a new --output_path"
    )


def check_whole(task: str, file: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a file has fewer questions than the results of its date say."""
    counts = _results(file).get("n-samples", {}).get(task, {})
    have, wanted = len({sample["doc_id"] for sample in samples}), counts.get("effective")
    if wanted is not None and have != wanted:
        raise ValueError(f"{file} has {have} of {wanted} questions: it is not whole, so measure {task} again")


def _name(file: Path) -> tuple[str, str]:
    name = SAMPLES.fullmatch(file.name)
    if name is None:
        raise ValueError(f"{file} is not named samples_<task>_<date>.jsonl as `lm_eval --log_samples` names it")
    return name["task"], name["date"]


def _check_one_model(path: Path, files: Sequence[Path]) -> None:
    """Raise ValueError if files are of several folders, or of several models that share a folder."""
    folders = sorted({str(file.parent.relative_to(path)) for file in files} if path.is_dir() else [])
    if len(folders) > 1:
        raise ValueError(
            f"{path} holds samples of several models or runs ({', '.join(folders)}): name the folder of one"
        )
    models = sorted({model for file in files if (model := _model(_results(file)))})
    if len(models) > 1:
        raise ValueError(
            f"{path} holds samples of several models ({'; '.join(models)}): measure each with its own --output_path"
        )


def _check_newest(latest: Mapping[str, Path]) -> None:
    """Raise ValueError if a task has results that are newer than its samples."""
    for task, file in latest.items():
        date = _name(file)[1]
        for other in file.parent.glob("*.json"):
            name = RESULTS.fullmatch(other.name)
            if name and name["date"] > date and task in _json(other).get("n-samples", {}):
                raise ValueError(
                    f"{other} has results of {task}, and {file.name} is older: measure {task} again with --log_samples"
                )


def _results(file: Path) -> dict[str, Any]:
    """The results of a file's date; empty if they are not there."""
    date = _name(file)[1]
    return next((_json(other) for other in sorted(file.parent.glob(f"*_{date}.json"))), {})


def _json(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): delete it, or measure again") from error
    return found if isinstance(found, dict) else {}


def _model(results: Mapping[str, Any]) -> str:
    """Name and arguments of the model that was measured: an adapter has the name of its base."""
    arguments = results.get("config", {}).get("model_args") or ""
    return " ".join(filter(None, [str(results.get("model_name") or ""), str(arguments)]))

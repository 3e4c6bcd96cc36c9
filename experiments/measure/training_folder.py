"""The folder in which a training is measured: one for each output folder, for one training at a time, and whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import BaseFileLock, FileLock, Timeout
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import read_json, read_note
from experiments.common.hashing import file_digest, sha256
from experiments.common.owner import MEASURED
from experiments.common.paths import default_root
from experiments.measure.config import MeasureConfig
from experiments.models.precision import gpu_of, products_of
from experiments.records import Record, read_records
from experiments.runs.base_records import ITEMS, STATE
from experiments.runs.result_file import RESULT

NAME, DIGESTS = "trained", "digests.json"  # the arm, and digests of its records by step
CALLBACK = "callback"  # the command in the note of its folders
HELD: dict[Path, BaseFileLock] = {}  # the folders that trainings of this process measure in


def default_folder(output: Path) -> Path:
    """Return the folder for the measurements of a training, by its output folder.

    Many trainings write to a folder `out`: a second one has a digest in its name, or it would delete the records of the
    first, and the first would go on against the base of the second.
    """
    folder = default_root() / "runs" / f"callback-{output.name}"
    owner = read_note(folder / "base" / STATE).get("output") or str(output)  # earlier versions noted none
    return folder if owner == str(output) else folder.with_name(f"{folder.name}-{sha256(str(output))[:8]}")


def hold(folder: Path) -> None:
    """Keep a folder for the trainings of this process, until `release`.

    Raises ConfigError if another one has it, or if a run or a measurement does: its base would be replaced.
    """
    note = read_note(folder / MEASURED)
    if (folder / "config.yaml").is_file() or note.get("command", CALLBACK) != CALLBACK or note.get("digest"):
        raise ConfigError(
            f"{folder} holds a run or a measurement, whose records would be replaced: take another folder, "
            "ForgettingCallback(folder=...)"
        )
    release(folder)  # of a training here that broke off
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another training is measured in {folder} now: take another folder, ForgettingCallback(folder=...)"
        ) from None
    HELD[folder] = lock


def release(folder: Path) -> None:
    if lock := HELD.pop(folder, None):
        lock.release()


def measured_base(folder: Path) -> bool:
    """Whether a folder holds the measurement of a base."""
    return all((folder / "base" / name).is_file() for name in (ITEMS, STATE))


def check_settings(folder: Path, note: Mapping[str, Any], config: MeasureConfig) -> None:
    """Raise ConfigError if a training would go on with other settings than its base was measured with."""
    changed = [name for name, value in config.to_dict().items() if note.get(name) != value]
    if changed:
        raise ConfigError(
            f"{folder} holds measurements with another {', '.join(changed)}: they would not compare. Take the old "
            "settings, or another folder, ForgettingCallback(folder=...)"
        )


def check_records(folder: Path, note: Mapping[str, Any], step: int) -> None:
    """Raise DamagedError if records of the base, or up to a step, are gone or others. Earlier versions noted none."""
    arm, advice = folder / "arms" / NAME, "bring it back, or take another folder, ForgettingCallback(folder=...)"
    noted = read_json(arm / DIGESTS, advice)
    digests = {arm / name: digest for name, digest in noted.items() if step_of(arm / name) <= step}
    if "items" in note:
        digests[folder / "base" / ITEMS] = note["items"]
    for file, digest in digests.items():
        if not file.is_file() or file_digest(file) != digest:
            state = "is not the file that was written" if file.is_file() else "is gone"
            raise DamagedError(f"{file} {state}: {advice}")


def libraries(model: PreTrainedModel) -> dict[str, str]:
    """Return what last digits of a measurement depend on besides the model."""
    own = {"torch": torch.__version__, "transformers": transformers.__version__, "device": model.device.type}
    return own | gpu_of(model) | {"products of fp32": products_of(model)}


def said_other(note: Mapping[str, Any], model: PreTrainedModel) -> str:
    """Say with which libraries or device the base was measured if a training goes on with others; else nothing."""
    now, known = libraries(model), note.get("with", {})  # earlier versions noted none
    both = [name for name in known if name in now]  # without a GPU its device says it
    pairs = [f"{name} {known[name]}, and {name} is {now[name]} here" for name in both if known[name] != now[name]]
    return f"the base was measured with {'; '.join(pairs)}: figures may differ for that alone" if pairs else ""


def said_replaced(folder: Path) -> str:
    """Say that a new training replaces what was measured of one that has ended; nothing if there is none."""
    if not (folder / "arms" / NAME / RESULT).is_file():
        return ""
    return f"{folder}: the measurements of an earlier training are replaced; folder=... keeps those of both"


def earlier_base(folder: Path, precision: str, model: PreTrainedModel) -> list[Record]:
    """Return what the model answered at the start of an earlier training, to compare with its answers now.

    Nothing if that is not as it was written, or if precision, libraries or device were others: these change answers.
    """
    file, note = folder / "base" / ITEMS, read_note(folder / "base" / STATE)
    as_now = note.get("precision") == precision and not said_other(note, model)
    return read_records(file) if as_now and file.is_file() and note.get("items") == file_digest(file) else []


def said_moved(earlier: Sequence[Record], base: Sequence[Record]) -> str:
    """Say that a training begins with another model than an earlier one: it may be the one which that one left.

    A cell that is run again after an interrupt goes on with the model as it is, from which nothing was forgotten yet.
    earlier: `earlier_base`. base: the answers now.
    """
    known = {(one.key, one.prompt): one.correct for one in earlier}
    both = [one for one in base if (one.key, one.prompt) in known]
    others = sum(one.correct != known[one.key, one.prompt] for one in both)
    if not others:
        return ""
    return (
        f"the model answers {others} of {len(both)} questions otherwise than at the start of the earlier training in "
        "this folder, and forgetting is measured from now on: if it has been trained since, load it again, or name its "
        "base, ForgettingCallback(base=...)"
    )


def step_of(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])

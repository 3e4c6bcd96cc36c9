"""The folder in which a training is measured: one for each output folder, and for one training at a time."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from experiments.common.errors import ConfigError
from experiments.common.files import read_note
from experiments.common.hashing import sha256
from experiments.common.owner import MEASURED
from experiments.common.paths import default_root
from experiments.runs.base_records import STATE

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

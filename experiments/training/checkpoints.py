"""Complete checkpoints, find the last complete one, and resume from it."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from experiments.common.files import read_json, read_note, write_json
from experiments.common.hashing import file_digest
from experiments.common.owner import LAUNCH, other_than, owner_of, settings_noted
from experiments.methods import ActiveMethod
from experiments.training.launcher import launch_kind
from experiments.training.meter import Meter
from experiments.training.processes import LaunchMismatch

COMPLETE = "complete.json"  # digests of a checkpoint's files (once their sizes), written after everything else
METHOD_STATE = "method.safetensors"  # ActiveMethod.state, in a checkpoint


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint; delete those that are unfinished, cut short, changed or of another arm."""
    for path in folder.glob("checkpoint-*"):
        if not _whole(path, _stamps(path)) or other_than(read_note(path / LAUNCH).get("owner", {}), _owner(folder)):
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def step_reached(folder: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 without one."""
    checkpoint = last_checkpoint(folder)
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _owner(folder: Path) -> dict[str, Any]:
    """Return the arm and the run of a folder `arms/NAME/checkpoints`."""
    arm = folder.absolute().parent
    return owner_of(arm.parent.parent, arm=arm.name, **settings_noted(arm))


def drop_checkpoints(folder: Path, step: int) -> None:
    """Delete the checkpoints of a step and of later ones, so that an arm goes through this step again."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) >= step:
            shutil.rmtree(path)


@functools.lru_cache(maxsize=8)
def _whole(checkpoint: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Whether the files are those that were there when it was complete. stamps: ask again only if a file is touched."""
    noted = read_note(checkpoint / COMPLETE)
    if all(isinstance(size, int) for size in noted.values()):  # of an earlier version
        return bool(noted) and noted == {name: size for name, size, *_ in stamps if name != COMPLETE}
    return noted == file_digests(checkpoint)


def _stamps(checkpoint: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return path, size, modification time and time of the last change of each file; no program sets the last one."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    known = [(str(path.relative_to(checkpoint)), path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in known)


def complete(folder: Path, method_state: Mapping[str, Tensor], meter: Meter) -> None:
    """Add to Trainer's checkpoint what an arm needs too, mark it as complete, then delete the older ones."""
    meter.save(folder)
    write_json(folder / LAUNCH, {"kind": launch_kind(), "owner": _owner(folder.parent)})
    if method_state:
        save_file(dict(method_state), folder / METHOD_STATE)
    to_disk(folder)
    write_json(folder / COMPLETE, file_digests(folder))
    to_disk(folder)  # the name of the marker; files that are on the disk already cost nothing
    for old in folder.parent.glob("checkpoint-*"):  # only now: a kill before this line leaves one that counts
        if old != folder:
            shutil.rmtree(old)


def resume(checkpoint: Path, method: ActiveMethod, meter: Meter) -> None:
    """Load what `complete` added. Raises LaunchMismatch."""
    check_launch(checkpoint)
    meter.load(checkpoint)
    if (checkpoint / METHOD_STATE).is_file():
        method.load_state(load_file(checkpoint / METHOD_STATE))


def check_launch(checkpoint: Path) -> None:
    """Raise LaunchMismatch for a checkpoint that this kind of launch cannot read."""
    written = read_json(checkpoint / LAUNCH).get("kind", "whole")
    if written != launch_kind():
        raise LaunchMismatch(
            f"{checkpoint} was written by a launch of kind {written!r}, and this one is {launch_kind()!r} (whole: "
            "python or torchrun, fsdp: accelerate launch --use_fsdp, deepspeed: --use_deepspeed): go on as it began, "
            "or delete that folder"
        )


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint by its path inside, without the marker.

    About 0.8 s per 500 MB and core; files are read at the same time.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_digest, files)
        return {str(path.relative_to(folder)): digest for path, digest in zip(files, digests, strict=True)}


def to_disk(folder: Path) -> None:
    """Flush the files of a checkpoint and the names of its folders, so that a power cut loses nothing of it."""
    inside = sorted(folder.rglob("*"), reverse=True)  # files before the folders that hold them
    for path in [*inside, folder, folder.parent]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Complete checkpoints, find the last complete one, and resume from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from experiments.common.files import read_json, write_json
from experiments.methods import Method
from experiments.training.meter import Meter
from experiments.training.processes import LaunchMismatch, launch_kind

COMPLETE = "complete.json"  # sizes of a checkpoint's files, written after everything else
METHOD_STATE = "method.safetensors"  # Method.state, in a checkpoint
LAUNCH = "launch.json"  # the kind of launch that wrote it


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint; delete those that are unfinished or were cut short."""
    for path in folder.glob("checkpoint-*"):
        marker = path / COMPLETE
        if not marker.is_file() or json.loads(marker.read_text()) != file_sizes(path):
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def complete(folder: Path, method_state: Mapping[str, Tensor], meter: Meter) -> None:
    """Add to Trainer's checkpoint what an arm needs too, mark it as complete, then delete the older ones."""
    meter.save(folder)
    write_json(folder / LAUNCH, {"kind": launch_kind()})
    if method_state:
        save_file(dict(method_state), folder / METHOD_STATE)
    to_disk(folder)
    write_json(folder / COMPLETE, file_sizes(folder))
    to_disk(folder)  # the name of the marker; files that are on the disk already cost nothing
    for old in folder.parent.glob("checkpoint-*"):  # only now: a kill before this line leaves one that counts
        if old != folder:
            shutil.rmtree(old)


def resume(checkpoint: Path, method: Method, meter: Meter) -> None:
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


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a checkpoint by its path inside, without the marker."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def to_disk(folder: Path) -> None:
    """Flush the files of a checkpoint and the names of its folders, so that a power cut loses nothing of it."""
    inside = sorted(folder.rglob("*"), reverse=True)  # files before the folders that hold them
    for path in [*inside, folder, folder.parent]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

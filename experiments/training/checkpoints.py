"""Which checkpoints of an arm count: those written to their end. A full disk is told apart from other errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from experiments.common.files import read_json
from experiments.training.processes import OtherLaunch, kind

COMPLETE = "complete.json"  # sizes of a checkpoint's files, written after everything else
METHOD_STATE = "method.safetensors"  # Method.state, in a checkpoint
LAUNCH = "launch.json"  # the kind of launch that wrote it
# what torch.save says when the disk is full; it has no error number
TORCH_WRITE_FAULTS = ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos")


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; unfinished ones and ones cut short are deleted."""
    for path in folder.glob("checkpoint-*"):
        marker = path / COMPLETE
        if not marker.is_file() or json.loads(marker.read_text()) != file_sizes(path):
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def same_launch(checkpoint: Path) -> None:
    """Raise OtherLaunch for a checkpoint that this kind of launch cannot read."""
    written = read_json(checkpoint / LAUNCH).get("kind", "whole")
    if written != kind():
        raise OtherLaunch(
            f"{checkpoint} was written by a launch of kind {written!r}, and this one is {kind()!r} (whole: python or "
            "torchrun, fsdp: accelerate launch --use_fsdp, deepspeed: --use_deepspeed): go on as it began, or delete "
            "that folder"
        )


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint, by its path inside; the marker itself is left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def to_disk(folder: Path) -> None:
    """Flush the files of a checkpoint and the names of its folders: after this a power cut loses nothing of it."""
    inside = sorted(folder.rglob("*"), reverse=True)  # files before the folders that hold them
    for path in [*inside, folder, folder.parent]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk is full. torch's writer says it only in words."""
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(chain) for words in (os.strerror(errno.ENOSPC), *TORCH_WRITE_FAULTS)):
            return True
        chain = chain.__cause__ or chain.__context__
    return False

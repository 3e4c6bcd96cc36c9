"""Cache the base model's log-probabilities in a file: computed once, then memory-mapped by all processes.

They are stored in fp32, as computed (tokens x vocabulary x 4 bytes: 226 MB for 24 replies of 48 tokens and 49,152
words), so a KL is equal to the last bit with the file and without. fp16 would take half the space, but the KL of the
base from itself would no longer be exactly 0 (measured in experiments/LOG.md).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.common.files import UMASK

logger = logging.getLogger(__name__)
LIMIT = 4 * 2**30  # bytes of all these files in a cache; beyond it, each process computes its own
PATTERN = "log_probs-*.safetensors"


def stored(path: Path, compute: Callable[[], dict[int, Tensor]]) -> dict[int, Tensor]:
    """Return the tensors in the file `path`, memory-mapped on the CPU. Without the file, compute and write them first.

    A second process waits for the first and then reads. A damaged file is written again. If there is no space (`LIMIT`,
    or a full disk), the computed tensors stay in memory. Both are logged as a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        found = _read(path)
        if found is not None:
            return found
        computed = compute()
        return (_read(path) if _write(path, computed) else None) or computed


def _read(path: Path) -> dict[int, Tensor] | None:
    """Read a file and check each byte; None if there is no such file or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            noted = (file.metadata() or {}).get("crc32")
        if noted not in (_checksum(tensors), _mark(path, tensors)):  # the first is that of earlier versions
            raise ValueError("its checksum does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SafetensorError) as error:
        logger.warning("%s is damaged (%s): the base's log-probabilities are computed again", path, error)
        return None
    return tensors


def _write(path: Path, tensors: Mapping[int, Tensor]) -> bool:
    """Write the file, whole or not at all. Returns whether that was possible."""
    cache, part = path.parents[1], path.with_suffix(".part")  # left by a killed process: overwritten
    try:
        on_cpu = {i: tensor.cpu().contiguous() for i, tensor in tensors.items()}
        size = sum(tensor.nbytes for tensor in on_cpu.values())
        if size + sum(other.stat().st_size for other in cache.glob(f"*/{PATTERN}")) > LIMIT:
            _warn(
                f"{size / 1e6:,.0f} MB more in {cache}/*/{PATTERN} would exceed {LIMIT / 1e6:,.0f} MB: delete old ones"
            )
            return False
        save_file({str(i): tensor for i, tensor in on_cpu.items()}, part, {"crc32": _mark(path, on_cpu)})
        part.chmod(0o666 & ~UMASK)  # safetensors makes files that only their owner can read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # a full disk raises either
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        _warn(f"{path} cannot be written ({error})")
        return False
    return True


def _mark(path: Path, tensors: Mapping[int, Tensor]) -> str:
    """Return the checksum, and of which base model and replies they are: the names of folder and file are digests."""
    return f"{_checksum(tensors)} {path.parent.name}/{path.name}"


def _checksum(tensors: Mapping[int, Tensor]) -> str:
    """Return the CRC-32 of all bytes, in the order of the indices. It is several times as fast as SHA-256."""
    crc = 0
    for index in sorted(tensors):
        crc = zlib.crc32(tensors[index].numpy().data, crc)
    return f"{crc:08x}"


@functools.cache  # each reason once
def _warn(reason: str) -> None:
    logger.warning("the base's log-probabilities are computed again in each process: %s", reason)

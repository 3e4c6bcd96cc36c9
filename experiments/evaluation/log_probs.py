"""A base's log-probabilities as a file beside its other cached results: computed once, then memory-mapped by all.

They are kept in fp32, as they were computed (tokens x words x 4 bytes: 226 MB for 24 replies of 48 tokens and 49,152
words), so a KL has the same bits with the file and without. As fp16 they would be half as large, but the base would no
longer be at exactly 0 from itself (measured in experiments/LOG.md).
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
LIMIT = 4 * 2**30  # bytes of all these files of a cache together; what would pass it is computed in each process
PATTERN = "log_probs-*.safetensors"


def stored(path: Path, compute: Callable[[], dict[int, Tensor]]) -> dict[int, Tensor]:
    """The tensors in the file `path`, memory-mapped on the CPU; where there is none, those of `compute`, written first.

    A second process waits for the first and then reads. A damaged file is written again. Where there is no room
    (`LIMIT`, or the disk is full) the tensors stay in memory, as they were computed. Both are told as a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        found = _read(path)
        if found is not None:
            return found
        computed = compute()
        return (_read(path) if _write(path, computed) else None) or computed


def _read(path: Path) -> dict[int, Tensor] | None:
    """The whole of a file, each byte of it checked; None where there is no such file or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            kept = (file.metadata() or {}).get("crc32")
        if kept != _checksum(tensors):
            raise ValueError("its checksum is another")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SafetensorError) as error:
        logger.warning("%s is damaged (%s): the base's log-probabilities are computed again", path, error)
        return None
    return tensors


def _write(path: Path, tensors: Mapping[int, Tensor]) -> bool:
    """Whether the file could be kept; it appears whole or not at all."""
    cache, part = path.parents[1], path.with_suffix(".part")  # what a killed process left of it is overwritten
    try:
        on_cpu = {i: tensor.cpu().contiguous() for i, tensor in tensors.items()}
        size = sum(tensor.nbytes for tensor in on_cpu.values())
        if size + sum(other.stat().st_size for other in cache.glob(f"*/{PATTERN}")) > LIMIT:
            _tell(f"{size / 1e6:,.0f} MB more in {cache}/*/{PATTERN} would pass {LIMIT / 1e6:,.0f} MB: delete old ones")
            return False
        save_file({str(i): tensor for i, tensor in on_cpu.items()}, part, {"crc32": _checksum(on_cpu)})
        part.chmod(0o666 & ~UMASK)  # safetensors' files are for their owner alone
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # a full disk is either
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        _tell(f"{path} cannot be written ({error})")
        return False
    return True


def _checksum(tensors: Mapping[int, Tensor]) -> str:
    """CRC-32 of all bytes, in the order of the indices: a guard against damage, several times as fast as SHA-256."""
    crc = 0
    for index in sorted(tensors):
        crc = zlib.crc32(tensors[index].numpy().data, crc)
    return f"{crc:08x}"


@functools.cache
def _tell(reason: str) -> None:
    logger.warning("the base's log-probabilities are computed again in each process: %s", reason)

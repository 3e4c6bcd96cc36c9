"""Devices by name, and this machine's own: their memory, and how fast they compute, by the vendors' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil
import torch

from experiments.common.errors import ConfigError
from experiments.common.section import nearest

GIB = 2**30
RESERVE = 2e9  # bytes of a GPU that no tensor gets: CUDA's context, libraries, gaps between blocks
UNITS = {"mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2**20, "gib": GIB, "tib": 2**40}


@dataclass(frozen=True)
class Device:
    """A device. memory: bytes that tensors can have. flops: of dense bf16 products per second; bandwidth: bytes/s.

    Both are None if nobody knows them: times are then left out. bf16: whether `precision: auto` is bf16 on it; None: on
    this machine, `Precision` knows.
    """

    name: str
    memory: float
    flops: float | None = None
    bandwidth: float | None = None
    bf16: bool | None = True


def _gpu(name: str, gib: float, tflops: float, tb: float) -> Device:
    return Device(name, gib * GIB - RESERVE, tflops * 1e12, tb * 1e12)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40gb", 39.4, 312, 1.56),
        _gpu("a100-80gb", 79.3, 312, 2.04),
        _gpu("h100-80gb", 79.1, 989, 3.35),
        _gpu("h200-141gb", 139.8, 989, 4.8),
        _gpu("b200-180gb", 178.0, 2250, 8.0),
        _gpu("l4-24gb", 22.0, 121, 0.3),
        _gpu("l40s-48gb", 44.4, 362, 0.86),
        _gpu("rtx4090-24gb", 23.5, 165, 1.01),
    )
}


def chosen(gpu: str | None, memory: str | None) -> Device:
    """Return the device of the options --gpu and --memory, or this machine's. Raises ConfigError."""
    if gpu and memory:
        raise ConfigError(f"--gpu {gpu} and --memory {memory}: give one of them")
    if gpu:
        if gpu not in GPUS:
            raise ConfigError(f"--gpu {gpu}: unknown; {nearest(gpu, GPUS)}. Or give --memory, for example 24gb")
        return GPUS[gpu]
    return Device(f"a device of {memory}", parsed(memory)) if memory else here()


def parsed(text: str) -> float:
    """`24gb` -> 24e9 bytes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]i?b)", text.strip().lower())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise ConfigError(f"--memory {text!r}: give a number and a unit of {', '.join(UNITS)}, for example 24gb")
    return float(found[1]) * UNITS[found[2]]


def here() -> Device:
    """Return this machine's GPU, or its main memory if it has none."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        known = known_gpu(found.name, found.total_memory)
        rates = (known.flops, known.bandwidth) if known else (None, None)
        return Device(found.name, found.total_memory - RESERVE, *rates, bf16=None)
    return Device("this machine's main memory", float(psutil.virtual_memory().total), bf16=None)


def known_gpu(name: str, memory: float) -> Device | None:
    """Return the GPU of GPUS that a driver calls so, None for any other. memory: of several models the nearest counts.

    `NVIDIA L40S` is not an L4, and `NVIDIA L40` is neither: a name must end where the driver's word ends.
    """
    words = re.sub(r"\brtx ", "rtx", name.lower())
    found = [gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name.split('-')[0]}\b", words)]
    return min(found, key=lambda gpu: abs(gpu.memory + RESERVE - memory), default=None)

"""Measure the load of the machine during a run: process, memory, GPUs. Sampled in the thread that delivers journals."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time

import psutil

QUERY = ["nvidia-smi", "--query-gpu=uuid,utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits"]
TIMEOUT_SECONDS, REST_SECONDS = 5.0, 600.0
MIB = 2**20


def system_metrics() -> dict[str, float]:
    """Return the load of process and machine: percent of one core, GB (10^9 bytes); per GPU percent and watts."""
    import torch

    memory = psutil.virtual_memory()
    metrics = {
        "system/process_cpu_percent": _process().cpu_percent(),
        "system/process_memory_gb": _process().memory_info().rss / 1e9,
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_used_gb": (memory.total - memory.available) / 1e9,
    }
    return metrics | (gpu_metrics() if torch.cuda.is_initialized() else {})


def gpu_metrics() -> dict[str, float]:
    """Return for each GPU of torch the used memory, and load and power from the driver's package or nvidia-smi."""
    import torch

    gpus = range(torch.cuda.device_count())
    figures = {}
    for i in gpus:
        free, total = torch.cuda.mem_get_info(i)
        figures[i] = {"memory_used_gb": (total - free) / 1e9}
    try:
        for i in gpus:
            figures[i] |= {"percent": float(torch.cuda.utilization(i)), "power_watts": torch.cuda.power_draw(i) / 1000}
    except Exception:  # most often ModuleNotFoundError; a driver without these values raises errors of its own
        known = _smi().figures()
        for i in gpus:
            figures[i] |= known.get(str(torch.cuda.get_device_properties(i).uuid).removeprefix("GPU-"), {})
    return {f"system/gpu_{i}_{name}": value for i in gpus for name, value in figures[i].items()}


class Smi:
    """Ask the program nvidia-smi, which comes with the driver.

    It lists all GPUs of the machine in the driver's order, torch those of CUDA_VISIBLE_DEVICES in its own, so they are
    matched by uuid. After a failure or TIMEOUT_SECONDS without an answer it is not asked for REST_SECONDS, because no
    journal is delivered during the wait.
    """

    def __init__(self) -> None:
        self._again = 0.0

    def figures(self) -> dict[str, dict[str, float]]:
        """Map uuid to percent, memory_used_gb (10^9 bytes), power_watts. Empty without the program or if it fails."""
        if time.monotonic() < self._again or shutil.which(QUERY[0]) is None:
            return {}
        try:
            done = subprocess.run(QUERY, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            self._again = time.monotonic() + REST_SECONDS
            return {}
        rows = (line.split(",") for line in done.stdout.splitlines())
        return {row[0].strip().removeprefix("GPU-"): _figures(row[1:]) for row in rows if len(row) == 4}


def _figures(row: list[str]) -> dict[str, float]:
    """Return those of percent, MiB and watts that are numbers; an unknown value is `[N/A]`."""
    scales = {"percent": 1.0, "memory_used_gb": MIB / 1e9, "power_watts": 1.0}
    found = {}
    for (name, scale), text in zip(scales.items(), row, strict=True):
        try:
            found[name] = float(text) * scale
        except ValueError:
            continue
    return found


@functools.cache
def _smi() -> Smi:
    return Smi()


@functools.cache
def _process() -> psutil.Process:
    return psutil.Process()

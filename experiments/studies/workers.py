"""Start the workers of a study, each on its GPU, and end one whose parent is gone.

Such a worker would go on unseen, and the next start of the study would add its own workers to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.common.commands import MODULE, own_modules, own_python
from experiments.common.errors import StudyError
from experiments.common.progress import PLAIN
from experiments.studies.locks import STORAGE

PARENT = "STUDY_PARENT"  # environment variable: the id of the process that started a worker
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1.0  # seconds between two looks at the parent


def worker_places(devices: str, per_device: int) -> list[str]:
    """Return the GPU of each worker, as CUDA_VISIBLE_DEVICES names it.

    devices: GPUs that this process sees, by number: `0,2`, `0-3`, or `auto` for all. per_device: workers on each.
    Raises StudyError for a GPU that is not there.
    """
    import torch

    if per_device < 1:
        raise StudyError(f"per-device={per_device}: give the number of workers on each GPU, 1 or more")
    count = torch.cuda.device_count()
    numbers = list(range(count)) if devices == "auto" else _numbers(devices)
    if not count:
        raise StudyError(f"devices={devices}: torch sees no GPU on this machine: leave it out, or give --workers")
    if unknown := [number for number in numbers if number >= count]:
        raise StudyError(f"devices={devices}: there is no GPU {unknown[0]}: give numbers from 0 to {count - 1}")
    visible = os.environ.get(VISIBLE)
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return [names[number] for _ in range(per_device) for number in numbers]


def _numbers(devices: str) -> list[int]:
    """Return the numbers of `0,2` or `0-3`. Raises StudyError."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", devices):
        raise StudyError(f"devices={devices}: give numbers of GPUs, such as 0,2 or 0-3, or auto")
    ends = [part.split("-") for part in devices.split(",")]
    numbers = [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]
    if not numbers or len(set(numbers)) < len(numbers):
        raise StudyError(
            f"devices={devices}: name each GPU once, and the lower end of a range first; several workers "
            f"on one GPU: --per-device 2"
        )
    return numbers


def worker_starter(config: Path, root: Path, storage: str, places: Sequence[str]) -> Callable[[], Any]:
    """Return a function that starts one of several workers, in a place that no running worker has.

    storage: a URL, not on the command line, which all see. places: the GPU of each worker, "" for no choice.
    """
    command = [*own_python(MODULE), "study", str(config), "--worker", "--root", str(root)]
    cores = max(1, (os.cpu_count() or 1) // len(places))
    threads = {"OMP_NUM_THREADS": str(cores), PLAIN: "1"} if len(places) > 1 else {}
    own = {STORAGE: storage, PARENT: str(os.getpid())} | own_modules()
    started: list[tuple[str, Any]] = []

    def start() -> Any:
        running = Counter(place for place, worker in started if worker.poll() is None)
        place = next(iter(Counter(places) - running))
        gpu = {VISIBLE: place} if place else {}
        worker = subprocess.Popen(command, env=threads | os.environ | own | gpu)
        started.append((place, worker))
        return worker

    return start


@contextlib.contextmanager
def ends_with_parent() -> Iterator[None]:
    """Send this process SIGTERM when the one that started it is gone. No effect in a process that is no worker."""
    parent, ended = os.environ.get(PARENT), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            if os.getppid() != int(str(parent)):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if parent:
        threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        ended.set()

"""Let one of two processes wait for the other, for test_processes.py: a folder is the argument.

Process 0 fails, then is slow, then hangs, then dies. Process 1 writes to `waited.json` what it met.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from transformers import PreTrainedModel

from experiments.training.callbacks import Hooks
from experiments.training.channel import AbortLaunch, CollectiveTimeout
from experiments.training.processes import Processes
from experiments.training.train import train_arm
from tests.helpers.engine import arm_config, config, context, plan
from tests.helpers.tiny_llama import tiny

TIMEOUT, TENSOR_TIMEOUT = timedelta(seconds=2), timedelta(seconds=3)


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=TENSOR_TIMEOUT)
    found: dict[str, str | float] = {"fails": failure()}
    with Processes.joined(TIMEOUT) as processes:
        start = time.monotonic()
        train(folder / "slow", processes, evaluate=lambda: nap(2 * TENSOR_TIMEOUT.total_seconds()))
        found["slow"] = time.monotonic() - start
        found["hangs"] = awaited(lambda: processes.on_main("report", lambda: threading.Event().wait(4)))
        dist.monitored_barrier(timeout=timedelta(minutes=2))  # the other one may be slow on a busy machine
        found["dies"] = awaited(lambda: train(folder / "dead", processes, evaluate=lambda: os._exit(0)))
        (folder / "waited.json").write_text(json.dumps(found))
        os._exit(0)  # nobody is left to leave together with


def failure() -> str:
    """The error of process 1 after process 0 has failed; the next launch is not concerned."""
    try:
        with Processes.joined(TIMEOUT) as processes:
            if processes.is_main:
                raise OSError("no space left")
            processes.receive(str)
    except (OSError, AbortLaunch) as error:
        return str(error)
    return ""


def train(folder: Path, processes: Processes, evaluate: Callable[[], None]) -> None:
    """Three steps; evaluations after the second and the third, in which process 0 does that and the other nothing."""
    arm = arm_config("full")
    method, model = arm.build(), tiny()
    method.prepare(model, context())

    def measure(model: PreTrainedModel) -> None:
        if processes.is_main:
            evaluate()

    hooks = Hooks(measure, lambda step, found: None, lambda step, logs: None)
    train_arm(model, method.begin(model, context()), context(), plan(config(arm, steps=3), folder), hooks, processes)


def nap(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def awaited(work: Callable[[], None]) -> str:
    """The error of a wait that was given up; empty without one."""
    try:
        work()
    except CollectiveTimeout as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Train in two processes: `python -m torch.distributed.run ... train_in_two_processes.py MODE WHAT ...`.

MODE: ddp, fsdp or zero (DeepSpeed), accelerate's own (`tests.helpers.launch`). WHAT: `methods FOLDER`, or arguments
of experiments.cli.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ctrl.sharded import sharded, whole
from experiments.cli import main as cli
from experiments.methods import METHODS, ActiveMethod
from experiments.methods.config import ArmConfig
from experiments.training.processes import MainProcessError, Processes
from experiments.training.trainer import ArmFailed
from tests.helpers.engine import OPTIONS, PRODUCTS, Killed, arm_config, train
from tests.helpers.launch import shard_on_cpu, zero_on_cpu

OTHERS = "control"  # of ddp: begun by one process and finished by two, and the other way round
BY_ONE, BY_TWO = "begun by one", "begun by two"  # their folders
RESUMED = ("control", "lora", "ema", "mer")  # killed on the way, and continued


def arm(method: str) -> ArmConfig:
    """Without dropout, which draws other numbers in each process. method: `kl lora` is kl with `trains: lora`."""
    if method in PRODUCTS:
        return arm_config(method)
    name, _, more = method.partition(" ")
    changed: dict[str, Any] = {"dropout": 0.0} if name == "lora" else {"trains": more} if name == "kl" and more else {}
    return arm_config(name, OPTIONS.get(name, {}) | changed)


def methods(mode: str) -> list[str]:
    """Those that are not refused there, and some of them with other settings. None whose weights depend on all tokens
    of a pass, of which each process has others.

    DDP: those that do more than the model's own pass, or change the optimiser. The others only wrap the model, and
    shards test them harder. FSDP: not rslora, eaft, prift, prox, asft and half, which meet shards as lora, dft, kl and
    partial do. In neither muscle and logit_swap, which read the base as kl and prift do.
    """
    left_out = {
        "ddp": ("partial", "stack", "hybrid", "rslora", "corda", "wise", "muscle", "logit_swap"),
        "fsdp": ("l2sp", "ewc", "mofo", "rslora", "eaft", "prift", "prox", "asft", "muscle", "logit_swap", "half"),
        "zero": ("mer", "mofo", "control bf16"),
    }
    others = ("kl lora", "kl control", "control bf16", "dft on control", "ema on lora", "kl and ema")
    return [name for name in (*METHODS, *others) if name not in left_out[mode] and not arm(name).build().reads_pass]


def steps(method: str) -> int:
    """Fewer for what is not killed at step 4: three evaluations with their checkpoints take most of the time."""
    return 6 if method in RESUMED else 4


def precision(method: str) -> str:
    return "bf16" if method.endswith("bf16") else "fp32"


def main(mode: str, what: str, *rest: str) -> int:
    dist.init_process_group("gloo")
    if mode == "fsdp":
        shard_on_cpu()
    if mode == "zero":
        zero_on_cpu()
    code = cli.main([what, *rest]) if what != "methods" else train_all(mode, Path(rest[0]))
    dist.destroy_process_group()
    return code


def train_all(mode: str, folder: Path) -> int:
    """Each method on the tiny model; what came of it in METHOD.pt."""
    with Processes.joined() as processes:
        return train_with(mode, folder, processes)


def train_with(mode: str, folder: Path, processes: Processes) -> int:
    for method in methods(mode):
        for kill_at in (4, None) if method in RESUMED else (None,):
            try:
                outcome = train(
                    arm(method),
                    folder / method,
                    kill_at,
                    precision=precision(method),
                    processes=processes,
                    steps=steps(method),
                )
            except (Killed, MainProcessError):
                continue
        assert sharded(outcome.model) == (mode == "fsdp")
        weights = {name: whole(tensor) for name, tensor in outcome.weights.items()}
        if processes.is_main:
            torch.save((outcome.logs, outcome.cost, weights, outcome.measured), folder / f"{method}.pt")
    if mode == "ddp":
        with pytest.raises((Killed, MainProcessError)):
            train(arm(OTHERS), folder / BY_TWO, 4, processes=processes)
        outcome = train(arm(OTHERS), folder / BY_ONE, processes=processes)
        if processes.is_main:
            torch.save((outcome.logs, outcome.weights), folder / f"{BY_ONE}.pt")
    if not processes.is_main:
        ActiveMethod.penalty = lambda self, model, *rest: torch.tensor(math.nan)  # type: ignore[method-assign]
    with pytest.raises(ArmFailed, match="loss became"):
        train(arm("full"), folder / "broken", processes=processes)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: the other process may be waiting for this one

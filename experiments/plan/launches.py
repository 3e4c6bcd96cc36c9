"""Find what a launch cannot do: several processes have parts of a batch, and shards have parts of weights or states.

A run asks it of the launch that it is in, a plan of the one that is planned.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.config import ExperimentConfig
from experiments.methods.config import ArmConfig
from experiments.plan.memory import Sharding
from experiments.training.launcher import deepspeed, shards


def this_sharding() -> Sharding:
    """Return what the processes of this launch hold in parts."""
    return "fsdp" if shards() else "zero2" if deepspeed() else "none"


def launch_faults(config: ExperimentConfig, sharding: Sharding, bf16: bool) -> Iterator[str]:
    """Say what no arm of a config can do in a launch. bf16: the arithmetic that `precision` means."""
    if sharding == "zero2" and bf16:
        yield (
            f"precision {config.precision!r} means bf16 here, and DeepSpeed would hold all weights in it, norms too, "
            "which is not the run of one process: set precision to fp32, or use accelerate launch --use_fsdp "
            "--fsdp_version 2"
        )
    if config.quantised is not None and sharding != "none":
        yield (
            f"quantised={config.quantised}: FSDP and DeepSpeed cut or cast weights in floats only: launch with "
            "torchrun alone, where each process holds the quantised base, or leave quantised out"
        )
    if config.training.arguments.get("optim") == "muon" and sharding != "none":
        yield "training.arguments: optim 'muon' needs whole matrices, and FSDP and DeepSpeed cut them: launch without"


def arm_faults(arm: ArmConfig, config: ExperimentConfig, sharding: Sharding, processes: int) -> Iterator[str]:
    """Say what an arm cannot do in a launch."""
    method = arm.build()
    if method.reads_weights and sharding == "fsdp":
        yield (
            f"method {arm.method_name} adds a function of all weights to the loss, and FSDP has them in shards: launch "
            "it without FSDP (each process then has the whole model), or leave the arm out"
        )
    if method.hooks_optimizer and sharding != "none":
        yield (
            f"method {arm.method_name} changes the optimizer's steps, and FSDP and DeepSpeed have weights or states in "
            "shards: launch it without them, or leave the arm out"
        )
    if method.writes_weights and sharding == "zero2":
        yield (
            f"method {arm.method_name} sets weights between steps, and DeepSpeed trains copies of its own: launch it "
            "without DeepSpeed, or leave the arm out"
        )
    if method.reads_pass and (cut := _cut(config, processes)):
        yield (
            f"method {arm.method_name} weighs a token by the others of its pass, and {cut}: results would not be those "
            "of the whole step. Leave that out, or leave the arm out"
        )


def _cut(config: ExperimentConfig, processes: int) -> str:
    """Return what cuts the batches of a step into passes of fewer rows; empty if nothing does."""
    micro, rows = config.training.micro_batch, config.training.batch_size
    if processes > 1:
        return f"each of the {processes} processes of this launch has a part of a batch"
    return f"training.micro_batch={micro} cuts a step of {rows} rows" if micro is not None and micro < rows else ""

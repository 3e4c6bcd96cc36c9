"""accelerate's FSDP2 and DeepSpeed between processes of a CPU: told that it is an accelerator, both work."""

from __future__ import annotations

import functools
import os
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}


def zero_on_cpu(stage: int = 2) -> None:
    """From now on what `accelerate launch --use_deepspeed --zero_stage 2` does; DeepSpeed has to be installed."""
    import deepspeed

    os.environ.update(DEEPSPEED, ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage))
    deepspeed.init_distributed(dist_backend="gloo")
    _called_a_gpu()
    for state in (PartialState, AcceleratorState):  # neither looks at DeepSpeed where a CPU is asked for
        whole = state.__init__
        state.__init__ = functools.partialmethod(_without_cpu, whole)


def _without_cpu(state: Any, whole: Any, *args: Any, **kwargs: Any) -> None:
    whole(state, *args, **{**kwargs, "cpu": False})


def shard_on_cpu() -> None:
    """From now on what `accelerate launch --use_fsdp --fsdp_version 2` does; call it once the gloo group is there."""
    os.environ.update(FSDP)
    _called_a_gpu()


def _called_a_gpu() -> None:
    kind = ("gloo", DistributedType.MULTI_GPU)  # by itself it calls this MULTI_CPU, which it does not shard
    PartialState._prepare_backend = lambda *args, **kwargs: kind  # type: ignore[method-assign]

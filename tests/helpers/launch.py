"""Two processes of one machine; accelerate's FSDP2 and DeepSpeed on a CPU: told it is an accelerator, both work."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}
ROOT = Path(__file__).parents[2]
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}


def two_processes(script: Path, *arguments: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes on this machine, as torchrun starts them, one thread each. timeout: in seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


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

"""accelerate's FSDP2 between processes of a CPU: told that this is an accelerator, it shards here as well."""

from __future__ import annotations

import os

from accelerate.state import DistributedType, PartialState

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}


def shard_on_cpu() -> None:
    """From now on what `accelerate launch --use_fsdp --fsdp_version 2` does; call it once the gloo group is there."""
    os.environ.update(FSDP)
    kind = ("gloo", DistributedType.MULTI_GPU)  # by itself it calls this MULTI_CPU, which it does not shard
    PartialState._prepare_backend = lambda *args, **kwargs: kind  # type: ignore[method-assign]

"""Gather and write tensors that are sharded over processes (DTensors of FSDP2 or tensor parallelism).

Gathering is a collective call: every process must make it, in the same order, or the others wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from ctrl.errors import CheckpointError


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def sharded(model: Any) -> bool:
    """Return whether any parameter of the model is sharded."""
    return any(map(is_sharded, model.parameters()))


def reshard(model: Any) -> None:
    """Free what a pass of FSDP2 left gathered.

    Only then are all parameters shards, and the next pass gathers what was written to them.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def whole(tensor: Any) -> Tensor:
    """Return the tensor itself or the full tensor of a DTensor. Then every process of its mesh must call this."""
    tensor = tensor.detach()
    if is_sharded(tensor):
        tensor = tensor.to(tensor.device_mesh.device_type)  # shards may wait in host memory
        tensor = tensor.full_tensor().clone()  # cloned without the padding of the gather
    return cast(Tensor, tensor)


def write_once(state: Mapping[str, Tensor], write: Callable[[dict[str, Tensor]], None]) -> None:
    """Call `write` with the full tensors on the CPU; if the state is sharded, on rank 0 only, while the others wait.

    Every process must call this. An error on rank 0 is raised there, and as CheckpointError on the others. A tensor
    with two names stays one tensor.
    """
    if not any(is_sharded(tensor) for tensor in state.values()):
        write(_on_cpu(state))
        return
    is_main = dist.get_rank() == 0
    tensors = _on_cpu(state, keep=is_main)
    fault, message = None, [""]
    if is_main:
        try:
            write(tensors)
        except Exception as error:  # any error: the other processes must not wait for ever
            fault, message = error, [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(message, src=0)
    if fault is not None:
        raise fault
    if message[0]:
        raise CheckpointError(f"rank 0, which writes for all processes, failed with {message[0]}")


def _on_cpu(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gather the tensors one by one: name -> full tensor on the CPU. keep=False: join the collective, store nothing."""
    found: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in found:
            full = whole(tensor)
            found[id(tensor)] = full.cpu().contiguous() if keep else full.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in state.items()} if keep else {}

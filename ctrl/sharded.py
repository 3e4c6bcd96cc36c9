"""Models whose tensors are spread over processes (DTensors of FSDP2 or tensor parallelism): whole tensors again.

Gathering is a collective: every process has to get there, in the same order, or those that did wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from ctrl.errors import CheckpointError


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def sharded(model: Any) -> bool:
    """Whether parts of the model lie in other processes."""
    return any(map(is_sharded, model.parameters()))


def reshard(model: Any) -> None:
    """Give back what a pass of FSDP2 left gathered: only then are all parameters shards, and the next pass gathers what
    was written to them."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def whole(tensor: Any) -> Tensor:
    """The tensor itself, or all of a DTensor: called by every process of its mesh."""
    tensor = tensor.detach()
    if is_sharded(tensor):
        tensor = tensor.to(tensor.device_mesh.device_type)  # shards may wait in host memory
        tensor = tensor.full_tensor().clone()  # without the padding that gathering leaves behind it
    return cast(Tensor, tensor)


def write_once(state: Mapping[str, Tensor], write: Callable[[dict[str, Tensor]], None]) -> None:
    """`write(whole tensors on the CPU)`. Of a sharded state by the first process alone, while the others wait.

    Called by all of them. What fails in the first one is raised there, and as CheckpointError in the others. A tensor
    that stands under two names comes out as one.
    """
    if not any(is_sharded(tensor) for tensor in state.values()):
        write(_on_cpu(state))
        return
    first = dist.get_rank() == 0
    tensors = _on_cpu(state, keep=first)
    fault, said = None, [""]
    if first:
        try:
            write(tensors)
        except Exception as error:  # whatever it is: the others must not wait for ever
            fault, said = error, [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(said, src=0)
    if fault is not None:
        raise fault
    if said[0]:
        raise CheckpointError(f"the first process, which writes for all, failed with {said[0]}")


def _on_cpu(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors, one after the other; not `keep`: their part in gathering them alone."""
    found: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in found:
            full = whole(tensor)
            found[id(tensor)] = full.cpu().contiguous() if keep else full.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in state.items()} if keep else {}

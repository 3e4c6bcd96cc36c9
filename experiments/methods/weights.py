"""Trained weights by name: list them, copy them, shard copies like them, and swap them for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.sharded import is_sharded, reshard


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters that train."""
    return {name: p.detach().clone() for name, p in trainable(model).items()}


def shard_like(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Shard each tensor like the parameter of the same name, if FSDP has sharded the model since they were copied.

    They have to be full tensors, or sharded already: those are returned as they are.
    """
    reshard(model)
    parameters = trainable(model)
    if not any(is_sharded(parameters[name]) and not is_sharded(value) for name, value in values.items()):
        return values
    from torch.distributed.tensor import distribute_tensor

    def shard(value: Tensor, p: Any) -> Tensor:
        # no source rank: every process has the full tensor, and takes its own shard without communication
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)

    return {name: shard(value, parameters[name]) for name, value in values.items()}


@contextmanager
def swap_weights(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the trained parameters these values inside the block; afterwards they have the same bits as before.

    A sharded model's values are copied into its tensors, since FSDP gathers from the tensors that it has.
    """
    reshard(model)
    parameters = trainable(model)
    shards = any(map(is_sharded, parameters.values()))
    before = {name: p.detach().clone() if shards else p.data for name, p in parameters.items()}
    put = _copy if shards else _set
    try:
        for name, p in parameters.items():
            put(p, values[name])
        yield
    finally:
        reshard(model)
        for name, p in parameters.items():
            put(p, before[name])


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data = value.to(parameter.device, parameter.dtype)


def _copy(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)

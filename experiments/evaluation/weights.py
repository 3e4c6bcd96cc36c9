"""Relative size of the update of each layer's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.layer import ExpandedLayer
from ctrl.sharded import whole
from ctrl.structure import decoder_layers

if TYPE_CHECKING:
    import pandas as pd

RELAXED = ".interpolation_factor"  # of a norm of a copy


@torch.no_grad()
def update_sizes(base: PreTrainedModel, tuned: PreTrainedModel) -> pd.Series:
    """Return |W - W_base| / |W_base| per layer, over all its parameters.

    In an expanded layer W is the copy, also if it is stacked: then the figure is the distance of the copy from its
    original. Adapters count as what folding them in changes. A weight in bf16 is compared with the base's weight in
    bf16, so a frozen one gives 0. With a sharded model every process must call this. Raises ValueError for layers whose
    parameters differ from the base's.
    """
    import pandas as pd

    sizes = [_update(before, after) for before, after in zip(decoder_layers(base), decoder_layers(tuned), strict=True)]
    return pd.Series(sizes, index=pd.RangeIndex(len(sizes), name="layer"), name="update")


def _update(before: nn.Module, after: nn.Module) -> float:
    module = after.expanded if isinstance(after, ExpandedLayer) else after
    adapters = {name: m for name, m in module.named_modules() if hasattr(m, "get_base_layer")}
    old, now = dict(before.named_parameters()), _weights(module, list(adapters))
    if old.keys() != now.keys():
        odd = ", ".join(sorted(old.keys() ^ now.keys())[:3])
        raise ValueError(
            f"the tuned layers have other parameters than the base's ({odd}): pass the base model it was tuned from"
        )
    change = size = 0.0
    for name, weight in old.items():
        tensor = whole(now[name]).cpu()
        moved = tensor.double() - weight.to(tensor.device, tensor.dtype).double()
        place, _, own = name.rpartition(".")
        if place in adapters:
            moved += _folded(adapters[place], own)
        change += float(moved.square().sum())
        size += float(weight.double().square().sum())
    return float((change / max(size, 1e-30)) ** 0.5)


def _weights(module: nn.Module, adapters: list[str]) -> dict[str, Tensor]:
    """Return the parameters by their names in the base model: without adapters, and without `base_layer`.

    The factors of relaxed norms (`norm_mix: learned`) have no counterpart there, and are left out.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if name.endswith(RELAXED):
            continue
        place = next((adapter for adapter in adapters if name.startswith(f"{adapter}.")), None)
        if place is None:
            found[name] = parameter
        elif "lora_" not in name.removeprefix(place) and name.startswith(f"{place}.base_layer."):
            found[name.replace(".base_layer", "")] = parameter
    return found


def _folded(layer: Any, name: str) -> Tensor | float:
    """Return by how much folding the adapters in changes a parameter of their layer, on the CPU in fp64."""
    if _adds(layer):  # also if the model is in shards
        # stacked experts have a wrapper for each of their matrices, one around the other
        below = _folded(layer.base_layer, name) if hasattr(layer.base_layer, "get_base_layer") else 0.0
        if name != getattr(layer, "parameter_name", "weight"):
            return below
        deltas = [whole(layer.get_delta_weight(adapter)).cpu().double() for adapter in layer.active_adapters]
        return sum(deltas, torch.as_tensor(below))
    folded = copy.deepcopy(layer).float()  # a bf16 weight would swallow small changes
    start = folded.get_base_layer().get_parameter(name).detach().clone()
    folded.merge()
    moved: Tensor = folded.get_base_layer().get_parameter(name).double() - start.double()
    return moved.cpu()


def _adds(layer: Any) -> bool:
    """Whether the adapters add their `get_delta_weight` to the weight: plain LoRA, without DoRA's lengths."""
    return hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight") and not layer.lora_magnitude_vector

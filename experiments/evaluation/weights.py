"""Relative size of the update of each layer's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.layer import ExpandedLayer
from ctrl.sharded import whole
from ctrl.structure import decoder_layers

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def update_sizes(base: PreTrainedModel, tuned: PreTrainedModel) -> pd.Series:
    """Return |W - W_base| / |W_base| per layer, over all its parameters.

    In an expanded layer W is the copy, also if it is stacked: then the figure is the distance of the copy from its
    original. Adapters count with the weight they are attached to. A weight in bf16 is compared with the base's weight
    in bf16, so a frozen one gives 0. With a sharded model every process must call this. Raises ValueError for layers
    whose parameters differ from the base's.
    """
    import pandas as pd

    sizes = [_update(before, after) for before, after in zip(decoder_layers(base), decoder_layers(tuned), strict=True)]
    return pd.Series(sizes, index=pd.RangeIndex(len(sizes), name="layer"), name="update")


def _update(before: nn.Module, after: nn.Module) -> float:
    module = after.expanded if isinstance(after, ExpandedLayer) else after
    adapters = {name: m for name, m in module.named_modules() if hasattr(m, "get_delta_weight")}
    old, now = dict(before.named_parameters()), _weights(module, list(adapters))
    if old.keys() != now.keys():
        odd = ", ".join(sorted(old.keys() ^ now.keys())[:3])
        raise ValueError(
            f"the tuned layers have other parameters than the base's ({odd}): pass the base model it was tuned from"
        )
    added = {f"{name}.weight": adapter for name, adapter in adapters.items()}
    change = size = 0.0
    for name, weight in old.items():
        tensor = whole(now[name]).cpu()
        moved = tensor.double() - weight.to(tensor.device, tensor.dtype).double()
        if name in added:
            moved += sum(whole(_delta(added[name], adapter)).cpu().double() for adapter in added[name].active_adapters)
        change += float(moved.square().sum())
        size += float(weight.double().square().sum())
    return float((change / max(size, 1e-30)) ** 0.5)


def _weights(module: nn.Module, adapters: list[str]) -> dict[str, Tensor]:
    """Return the parameters by their names in the base model: without adapters, and without `base_layer`."""
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        place = next((adapter for adapter in adapters if name.startswith(f"{adapter}.")), None)
        if place is None:
            found[name] = parameter
        elif name.startswith(f"{place}.base_layer."):
            found[name.replace(".base_layer.", ".")] = parameter
    return found


def _delta(layer: nn.Module, adapter: str) -> Tensor:
    delta: Tensor = layer.get_delta_weight(adapter)  # type: ignore[operator]
    return delta

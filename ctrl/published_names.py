"""The names of tensors in the published layout, and ours: which layer of a checkpoint is what, and the way between.

An expanded layer i holds `pretrained_layer.*`, `expanded_layer.*` and its interpolation's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctrl.errors import ConfigError, unknown_name
from ctrl.layer import expanded_layers
from ctrl.structure import decoder_layers

# per interpolation: our tensor (below the layer's interpolation) -> published (below the layer)
TENSORS = {
    "lerp": {"theta": "interpolation_factor"},
    "slerp": {"theta": "interpolation_factor"},
    "dlerp": {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"},
    "dlerpin": {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"},
    "moe": {"theta": "gating.gate_network.0.bias", "weight": "gating.gate_network.0.weight"},
    "proj": {"theta": "interpolation_factor", "offset": "linear_proj.weight"},
    "plerp": {"theta": "interpolation_factor", "offset": "lateral_connection.weight"},
}


class Places:
    """Which of a checkpoint's layers are what. index: in the checkpoint, stacked copies counted; original: in the base.

    total: the checkpoint's layers. unfrozen: indices that hold a copy. originals: the base layers these are copies of.
    base_layers: index of each base layer. A stacked copy stands behind its original as a layer of its own, a concat
    pair is one layer. Raises ConfigError for values that no expansion gives.
    """

    def __init__(self, expansion: Mapping[str, Any], total: int) -> None:
        kind, frozen = expansion.get("expand_type", "concat"), expansion.get("freezed_layers", [])
        whole = isinstance(frozen, list) and all(type(i) is int and 0 <= i < total for i in frozen)
        if not whole or len(set(frozen)) == total:
            raise ConfigError(
                f"freezed_layers must list the layers, of 0..{total - 1}, without a copy, but got {frozen!r}"
            )
        self.unfrozen = [i for i in range(total) if i not in frozen]
        kinds = {"stack": ["stack"] * total, "concat": ["concat"] * total, "hybrid": ["stack", "concat"] * total}
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(unknown_name("expand_type", kind, list(kinds)))
        stacked = {i for i, branch in zip(self.unfrozen, kinds[kind], strict=False) if branch == "stack"}
        self.base_layers = [i for i in range(total) if i not in stacked]
        self.originals = [sum(base <= i for base in self.base_layers) - 1 for i in self.unfrozen]
        if len(set(self.originals)) < len(self.originals) or -1 in self.originals:
            raise ConfigError(
                f"unfrozen layers {self.unfrozen} put two copies on one layer or one before the first layer"
            )


def published_names(model: Any) -> dict[str, str]:
    """Our name of each tensor of an expanded model -> its name in the layout."""
    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    kinds = {layer.index: layer.kind for layer in expanded_layers(model)}
    where, _ = deeper_indices(kinds, model.control.total)
    names = {}
    for name in model.state_dict():
        names[name] = name
        if name.startswith(f"{prefix}."):
            number, rest = name.removeprefix(f"{prefix}.").split(".", 1)
            index, kind = where[int(number)], kinds.get(int(number))
            if kind == "stack" and rest.startswith("expanded."):
                index, rest = index + 1, rest.removeprefix("expanded.")
            elif kind == "concat":
                rest = _in_pair(rest, TENSORS[model.control.config.interpolation])
            names[name] = f"{prefix}.{index}.{rest}"
    return names


def _in_pair(name: str, tensors: dict[str, str]) -> str:
    """Our name below a concat layer -> the layout's."""
    if name.startswith("expanded."):
        return f"expanded_layer.{name.removeprefix('expanded.')}"
    if name.startswith("interpolation."):
        return tensors[name.removeprefix("interpolation.")]
    return f"pretrained_layer.{name}"


def our_value(name: str, value: Tensor, interpolation: str) -> Tensor:
    """The tensor of a checkpoint -> ours of this name. One of a wrong shape comes out in a wrong shape."""
    if name.endswith(".interpolation.offset") and value.dim() == 2 and value.shape[0] == value.shape[1]:
        return value.float() - torch.eye(value.shape[0])
    if name.endswith(".interpolation.theta"):
        flat = value.float().reshape(-1)
        return flat.diff() if interpolation == "moe" else flat  # moe: g_1 - g_0
    return value


def published_value(name: str, value: Tensor, interpolation: str) -> Tensor:
    """Our tensor of this name -> that of a checkpoint."""
    if name.endswith(".interpolation.offset"):
        return value.float() + torch.eye(value.shape[0], device=value.device)
    if name.endswith(".interpolation.theta") and interpolation == "moe":
        return torch.cat([torch.zeros_like(value), value])
    return value


def deeper_indices(kinds: Mapping[int, str], total: int) -> tuple[dict[int, int], list[int]]:
    """Index of each base layer among the checkpoint's layers, and the checkpoint's unfrozen indices."""
    where, unfrozen, shift = {}, [], 0
    for index in range(total):
        where[index] = index + shift
        shift += kinds.get(index) == "stack"
        if index in kinds:
            unfrozen.append(index + shift)
    return where, unfrozen


def layer_index(name: str) -> list[int]:
    """The first number in a dotted name: the layer's."""
    return [int(part) for part in name.split(".") if part.isdigit()][:1]

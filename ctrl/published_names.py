"""The names of tensors in the published layout, and ours: which layer of a checkpoint is what, and the way between.

An expanded layer i holds `pretrained_layer.*`, `expanded_layer.*` and its interpolation's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctrl.config import ControlConfig
from ctrl.errors import ConfigError, unknown_name

# per interpolation: published tensor (below the layer) -> ours (below the layer's interpolation)
TENSORS = {
    "lerp": {"interpolation_factor": "theta"},
    "slerp": {"interpolation_factor": "theta"},
    "dlerp": {"interp_weight.fc.weight": "weight", "interp_weight.fc.bias": "theta"},
    "dlerpin": {"interp_weight.fc.weight": "weight", "interp_weight.fc.bias": "theta"},
    "moe": {"gating.gate_network.0.weight": "weight", "gating.gate_network.0.bias": "theta"},
    "proj": {"interpolation_factor": "theta", "linear_proj.weight": "offset"},
    "plerp": {"interpolation_factor": "theta", "lateral_connection.weight": "offset"},
}


class Places:
    """Which of a checkpoint's layers are what. index: in the checkpoint, stacked copies counted; original: in the base.

    A stacked copy stands behind its original as a layer of its own, a concat pair is one layer.
    """

    def __init__(self, expansion: Mapping[str, Any], total: int) -> None:
        kind = expansion.get("expand_type", "concat")
        unfrozen = [i for i in range(total) if i not in set(expansion.get("freezed_layers", []))]
        kinds = {"stack": ["stack"] * len(unfrozen), "concat": ["concat"] * len(unfrozen)}
        kinds["hybrid"] = ["stack" if j % 2 == 0 else "concat" for j in range(len(unfrozen))]
        if kind not in kinds:
            raise ConfigError(unknown_name("expand_type", kind, list(kinds)))
        branch = dict(zip(unfrozen, kinds[kind], strict=True))
        self.original: dict[int, int] = {}
        self.branch: dict[int, str] = branch
        seen = 0
        for index in range(total):
            seen += branch.get(index) != "stack"
            self.original[index] = seen - 1
        self.base_layers = seen
        self.originals = [self.original[i] for i in unfrozen]
        if len(set(self.originals)) < len(self.originals) or -1 in self.originals:
            raise ConfigError(f"unfrozen layers {unfrozen} put two copies on one layer or one before the first layer")


def to_ours(name: str, value: Tensor, model: Any, places: Places) -> list[tuple[str, Tensor]]:
    """Published name and tensor -> ours."""
    index = next(iter(layer_index(name)), None)
    if name.endswith("rotary_emb.inv_freq"):
        return []  # derived from the config
    if index is None:
        return [(name, value)]
    head, rest = _split(name)
    ours = f"{head}.{places.original[int(index)]}"
    branch = places.branch.get(int(index))
    if branch == "stack":
        return [(f"{ours}.expanded.{rest}", value)]
    if branch is None or rest.startswith("pretrained_layer."):
        return [(f"{ours}.{rest.removeprefix('pretrained_layer.')}", value)]
    if rest.startswith("expanded_layer."):
        return [(f"{ours}.expanded.{rest.removeprefix('expanded_layer.')}", value)]
    known = TENSORS[model.control.config.interpolation]
    if rest not in known:
        return [(name, value)]  # reported as extra
    return [(f"{ours}.interpolation.{known[rest]}", _our_value(known[rest], value))]


def _our_value(name: str, value: Tensor) -> Tensor:
    if name == "offset":
        return value.float() - torch.eye(value.shape[0])
    if name == "theta":
        return value.float().reshape(-1)[-1:] - (value.float()[:1] if value.numel() == 2 else 0.0)  # moe: g_1 - g_0
    return value


def to_published(
    name: str, value: Tensor, prefix: str, where: dict[int, int], kinds: dict[int, str], config: ControlConfig
) -> dict[str, Tensor]:
    """Ours -> published."""
    if not name.startswith(f"{prefix}."):
        return {name: value}
    number, rest = name.removeprefix(f"{prefix}.").split(".", 1)
    index, kind = int(number), kinds.get(int(number))
    layer = f"{prefix}.{where[index]}"
    if kind == "stack" and rest.startswith("expanded."):
        return {f"{prefix}.{where[index] + 1}.{rest.removeprefix('expanded.')}": value}
    if kind != "concat":
        return {f"{layer}.{rest}": value}
    if rest.startswith("expanded."):
        return {f"{layer}.expanded_layer.{rest.removeprefix('expanded.')}": value}
    if not rest.startswith("interpolation."):
        return {f"{layer}.pretrained_layer.{rest}": value}
    ours = rest.removeprefix("interpolation.")
    published = next(p for p, o in TENSORS[config.interpolation].items() if o == ours)
    if ours == "offset":
        value = value.float() + torch.eye(value.shape[0], device=value.device)
    if ours == "theta" and config.interpolation == "moe":
        value = torch.cat([torch.zeros_like(value), value])
    return {f"{layer}.{published}": value}


def deeper_indices(kinds: dict[int, str], total: int) -> tuple[dict[int, int], set[int]]:
    """Index of each base layer among the checkpoint's layers, and the checkpoint's unfrozen indices."""
    where, unfrozen, shift = {}, set(), 0
    for index in range(total):
        where[index] = index + shift
        if kinds.get(index) == "concat":
            unfrozen.add(index + shift)
        elif kinds.get(index) == "stack":
            shift += 1
            unfrozen.add(index + shift)
    return where, unfrozen


def layer_index(name: str) -> list[str]:
    """The first number in a dotted name: the layer's."""
    return [part for part in name.split(".") if part.isdigit()][:1]


def _split(name: str) -> tuple[str, str]:
    """`model.layers.3.mlp.w` -> (`model.layers`, `mlp.w`)."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at]), ".".join(parts[at + 1 :])

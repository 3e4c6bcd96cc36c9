"""The names of tensors in the published layout, and ours: which layer of a checkpoint is what, and the way between.

An expanded layer i holds `pretrained_layer.*`, `expanded_layer.*` and its interpolation's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ctrl.errors import ConfigError, unknown_name
from ctrl.interpolation import INTERPOLATIONS, Published
from ctrl.layer import expanded_layers
from ctrl.structure import decoder_layers


class LayerMap:
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
                rest = _in_pair(rest, layout_of(model.control.config.interpolation))
            names[name] = f"{prefix}.{index}.{rest}"
    return names


def _in_pair(name: str, interpolation: Published) -> str:
    """Our name below a concat layer -> the layout's."""
    if name.startswith("expanded."):
        return f"expanded_layer.{name.removeprefix('expanded.')}"
    if name.startswith("interpolation."):
        return interpolation.tensors[name.removeprefix("interpolation.")]
    return f"pretrained_layer.{name}"


def layout_of(interpolation: str) -> Published:
    """The layout's names for an interpolation. Raises ConfigError if it has none."""
    found = INTERPOLATIONS[interpolation].published
    if found is None:
        known = [name for name, cls in INTERPOLATIONS.items() if cls.published is not None]
        raise ConfigError(f"the published layout has no interpolation {interpolation!r}: {', '.join(known)}")
    return found


def our_value(name: str, value: Tensor, interpolation: str) -> Tensor:
    """Convert a checkpoint's tensor to ours of this name."""
    _, found, own = name.rpartition(".interpolation.")
    return INTERPOLATIONS[interpolation].from_published(own, value) if found else value


def published_value(name: str, value: Tensor, interpolation: str) -> Tensor:
    """Convert our tensor of this name to the checkpoint's."""
    _, found, own = name.rpartition(".interpolation.")
    return INTERPOLATIONS[interpolation].to_published(own, value) if found else value


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

"""Convert between our names of tensors and layers and those of the published layout.

There an expanded layer i holds `pretrained_layer.*`, `expanded_layer.*` and its interpolation's tensors.
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
    """Say which layers of a checkpoint are copies, and of which base layers.

    In the checkpoint a stacked copy is a layer of its own, directly after its original; a concat pair is one layer.

    total: number of layers in the checkpoint.
    unfrozen: checkpoint indices of the layers that hold a copy. originals: base indices of the layers copied there.
    base_layers: checkpoint index of each base layer.

    Raises ConfigError for values that no expansion gives.
    """

    def __init__(self, expansion: Mapping[str, Any], total: int) -> None:
        kind, frozen = expansion.get("expand_type", "concat"), expansion.get("freezed_layers", [])
        whole = isinstance(frozen, list) and all(type(i) is int and 0 <= i < total for i in frozen)
        if not whole or len(set(frozen)) == total:
            raise ConfigError(
                f"freezed_layers must list the layers without a copy, from 0..{total - 1}, but got {frozen!r}"
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
                f"unfrozen layers {self.unfrozen} give two copies to one layer, or one before the first layer"
            )


def published_names(model: Any) -> dict[str, str]:
    """Map our name of each tensor of an expanded model to its name in the layout."""
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
    """Convert our name of a tensor in a concat layer to that of the layout."""
    if name.startswith("expanded."):
        return f"expanded_layer.{name.removeprefix('expanded.')}"
    if name.startswith("interpolation."):
        return interpolation.tensors[name.removeprefix("interpolation.")]
    return f"pretrained_layer.{name}"


def layout_of(interpolation: str) -> Published:
    """Return the layout's names for an interpolation. Raises ConfigError if it has none."""
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
    """Map base indices to checkpoint indices, and list the unfrozen checkpoint indices.

    kinds: base index -> `concat` or `stack`. total: number of base layers.
    """
    where, unfrozen, shift = {}, [], 0
    for index in range(total):
        where[index] = index + shift
        shift += kinds.get(index) == "stack"
        if index in kinds:
            unfrozen.append(index + shift)
    return where, unfrozen


def layer_index(name: str) -> list[int]:
    """Return the first number in a dotted name, the layer's index, as a list; [] if there is none."""
    return [int(part) for part in name.split(".") if part.isdigit()][:1]

"""Layers know their index, which is their slot in a cache: a copy has another one, and a stack moves those after it.

Layers that compute with it, and decoders that count their layers, are refused where that would give another model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.errors import ConfigError


def indexed(module: nn.Module) -> list[Any]:
    """List the parts of a layer that know its index."""
    return [part for part in module.modules() if isinstance(getattr(part, "layer_idx", None), int)]


def computes_with_index(layer: nn.Module, other: int, run: Callable[[], Tensor]) -> bool:
    """Return whether a layer computes something else if its index is another one.

    run: runs the layer, without a cache.
    """
    parts = indexed(layer)
    indices = [part.layer_idx for part in parts]

    def at(numbers: list[int]) -> Tensor:
        for part, number in zip(parts, numbers, strict=True):
            part.layer_idx = number
        return run()

    try:
        here, there = at(indices), at([other] * len(parts))
    finally:
        again = at(indices)
    return not torch.equal(here, there) and torch.equal(here, again)  # it may draw numbers


def refuse_counted_layers(model: Any) -> None:
    """Raise ConfigError for a decoder that adds parts of images after its first layers, which it counts (Qwen3-VL).

    Such a decoder may be used for text alone: then its config is the model's own.
    """
    if model.config.get_text_config(decoder=True) is model.config:
        return
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    names = [name for name in inspect.signature(type(decoder).forward).parameters if name.startswith("deepstack")]
    if names:
        raise ConfigError(
            f"{type(model).__name__} adds parts of images ({names[0]}) after its first layers, by their index: with "
            "the stacked copies inserted these are other layers. Keep it expanded (ctrl.save), or expand with "
            "structure='concat'"
        )

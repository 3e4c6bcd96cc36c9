"""Give each copy a cache slot of its own."""

from __future__ import annotations

import copy
from typing import Any

from transformers.cache_utils import Cache, DummyLayer, EncoderDecoderCache

from ctrl.control import Control


def add_cache_slots(control: Control, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Append cache layers for the copies after those of the base model, each of the same kind as its original's.

    In the slot of its original a copy would overwrite keys, and generation would be wrong without an error.
    """
    cache = next((v for v in (*kwargs.values(), *args) if isinstance(v, Cache)), None)
    if isinstance(cache, EncoderDecoderCache):  # of a decoder that may run with an encoder, or without one
        cache = cache.self_attention_cache
    if cache is None or getattr(cache, "layer_class_to_replicate", None) is not None:
        return  # such a cache appends layers by itself, all of one kind
    if len(cache.layers) < control.total:
        raise ValueError(
            f"past_key_values has {len(cache.layers)} layers, the base model {control.total}: pass a cache made from "
            "the model's own config"
        )
    for original in control.layers[len(cache.layers) - control.total :]:
        cache.layers.append(_empty_like(cache.layers[original]))


def _empty_like(layer: Any) -> Any:
    if isinstance(layer, DummyLayer):  # of a layer that keeps nothing
        return copy.deepcopy(layer)
    filled = layer.get_seq_length() if hasattr(layer, "get_seq_length") else any(layer.has_previous_state.values())
    if int(filled) > 0:
        raise ValueError(
            "past_key_values was filled while the expanded layers did not run (by the base model, or inside "
            "ctrl.pretrained): pass a new cache"
        )
    empty = copy.deepcopy(layer)
    if getattr(empty, "is_initialized", False):
        empty.reset()
    return empty

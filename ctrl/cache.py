"""Give each copy a cache slot of its own."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DummyLayer, EncoderDecoderCache

from ctrl.control import Control
from ctrl.errors import ConfigError
from ctrl.numerics import some_of

FILLER = "filled_by_control"  # attributes of a cache
ALONE = "filled_without_copies"
MODE = "mode_of_control"  # of a cache of continuous batching
FILLED_BY_OTHER = (
    "past_key_values was filled by another expansion, of other layers or weights or one that ctrl.swap or ctrl.unload "
    "has taken off: keys and values of its copies are in it. Pass a new cache"
)
FILLED_BY_COPIES = (
    "past_key_values was filled while the expanded layers ran, and they do not run now (inside ctrl.pretrained): keys "
    "and values above the first copy are not those of the base. Pass a new cache"
)
FILLED_ALONE = (
    "past_key_values was filled while the expanded layers did not run (by the base model, or inside ctrl.pretrained): "
    "pass a new cache. PEFT's prefix tuning fills one without the copies: use its LoRA or prompt tuning"
)

FILLED_IN_OTHER_MODE = (
    "continuous batching runs, and the model computes something else now (ctrl.pretrained, ctrl.at_alpha, ctrl.swap): "
    "its cache has keys and values from before. Stop the manager, and start one after the change"
)


class _Filler:
    """Name the expansion that fills a cache. A copied cache names it too, a pickled one its layers alone."""

    def __init__(self, layers: list[int], control: Control | None = None) -> None:
        self.layers, self.control = layers, None if control is None else weakref.ref(control)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Filler:
        return self

    def __reduce__(self) -> Any:
        return _Filler, (self.layers,)

    def is_other(self, control: Control) -> bool:
        """Whether it is another expansion: of other layers, gone, taken off, or alive with other weights."""
        filled_by = control if self.control is None else self.control()
        if filled_by is control or self.layers != control.layers:
            return self.layers != control.layers
        models = [one.owner() if one is not None and one.owner is not None else None for one in (filled_by, control)]
        return models[0] is None or (models[1] is not None and not _same_weights(*models))


def _same_weights(one: Any, other: Any) -> bool:
    """Whether two models have the same weights, as far as a sample of those shows that are whole and in no quantised
    type. It is taken once: the cache then names the model that went on with it.
    """
    pairs = zip(one.parameters(), other.parameters(), strict=False)
    plain = [pair for pair in pairs if all(type(p) is nn.Parameter and not p.is_meta for p in pair)]
    samples = ((some_of(p), some_of(q).to(p.device)) for p, q in plain)
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in samples)


def add_cache_slots(control: Control, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Append cache layers for the copies after those of the base model, each of the same kind as its original's.

    In the slot of its original a copy would overwrite keys, and generation would be wrong without an error. index: of
    the layer that runs next; raises ValueError if its copy has not seen the same tokens.
    """
    cache = _given(args, kwargs)
    if cache is None:
        return
    if getattr(cache, "layer_class_to_replicate", None) is None:  # others append layers themselves, all of one kind
        _append(control, cache)
    if torch.compiler.is_compiling():
        return
    _check_owner(control, cache)
    slots = (index, control.total + control.layers.index(index))
    first, copied = (_length(cache, slot) for slot in slots)
    if first is not None and copied is not None and bool(first != copied):
        raise ValueError(FILLED_ALONE)
    if vars(cache).get(ALONE) and not hasattr(cache.layers[index], "get_seq_length"):
        if _holds_tokens(cache.layers[index]):
            raise ValueError(FILLED_ALONE)
        delattr(cache, ALONE)  # it was reset


def note_run_without_copies(control: Control, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Mark a cache that fills while no copy runs, since the states of linear attention do not count their tokens.

    Raises ValueError if copies have filled theirs.
    """
    if (cache := _given(args, kwargs)) is not None and not torch.compiler.is_compiling():
        if any(map(_holds_tokens, cache.layers[control.total :])):
            raise ValueError(FILLED_BY_COPIES)
        setattr(cache, ALONE, True)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the cache among the arguments of a layer; None if there is none."""
    cache = next((v for v in (*kwargs.values(), *args) if isinstance(v, Cache)), None)
    if isinstance(cache, EncoderDecoderCache):  # of a decoder that may run with an encoder, or without one
        return cache.self_attention_cache
    return cache


def add_paged_slots(manager: Any) -> Any:
    """Let a manager of continuous batching lay out its cache with slots for the copies too, and return it.

    It reads the number and the kinds of layers from the model's config, once, when it makes the cache. A manager that
    is kept starts with a new cache if the model computes something else by now: prompts that begin alike share blocks.
    Raises ConfigError for a class whose attention reads no such cache: transformers gives wrong tokens for its base.
    """
    if not manager.model.is_backend_compatible():
        raise ConfigError(
            f"{type(manager.model).__name__} computes its attention itself and does not read the cache of continuous "
            "batching, so the tokens would be wrong: call model.generate"
        )
    create = manager._create_batch_processor
    if getattr(create, "adds_slots", False):  # a manager that was kept
        return manager

    @functools.wraps(create)
    def created() -> Any:
        control = getattr(manager.model, "control", None)  # None after `ctrl.unload`
        mode = None if control is None else control.mode
        if getattr(getattr(manager.batch_processor, "cache", None), MODE, None) != mode:
            manager.batch_processor = None
        with nullcontext() if control is None else _counting_copies(control, manager.model.config.get_text_config()):
            processor = create()
        setattr(processor.cache, MODE, mode)
        return processor

    created.adds_slots = True  # type: ignore[attr-defined]
    manager._create_batch_processor = created
    return manager


def check_paged(control: Control, cache: Any) -> None:
    """Raise ValueError if a manager of continuous batching began before the model computed what it computes now."""
    filled = getattr(cache, MODE, None)
    if filled is not None and filled != control.mode:  # whose alphas are read from the device: not in each pass
        raise ValueError(FILLED_IN_OTHER_MODE)


@contextmanager
def _counting_copies(control: Control, config: Any) -> Iterator[None]:
    """Let a config count the copies as further layers inside the block, each of its original's kind."""
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")  # GPT-2 names it n_layer
    counted: dict[str, Any] = {count: control.total + len(control.layers)}
    kinds = vars(config).get("layer_types")
    if kinds is not None:
        counted["layer_types"] = [*kinds, *(kinds[index] for index in control.layers)]
    before = {name: vars(config)[name] for name in counted}
    vars(config).update(counted)
    try:
        yield
    finally:
        vars(config).update(before)


def _check_owner(control: Control, cache: Any) -> None:
    """Raise ValueError for a cache that another expansion has filled: of other layers, or before a `ctrl.swap`."""
    filler = vars(cache).get(FILLER)
    if filler is not None and filler.is_other(control) and any(map(_holds_tokens, cache.layers)):
        raise ValueError(FILLED_BY_OTHER)
    if filler is None or filler.control is None or filler.control() is not control:
        setattr(cache, FILLER, _Filler(control.layers, control))


def _append(control: Control, cache: Any) -> None:
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
    if _holds_tokens(layer):
        raise ValueError(FILLED_ALONE)
    empty = copy.deepcopy(layer)
    if getattr(empty, "is_initialized", False):
        empty.reset()
    return empty


def _holds_tokens(layer: Any) -> bool:
    """Whether a slot has seen any token. Those of linear attention do not count theirs, and empty ones keep nothing."""
    if hasattr(layer, "get_seq_length"):
        return int(layer.get_seq_length()) > 0
    return any(getattr(layer, "has_previous_state", {}).values())


def _length(cache: Any, slot: int) -> int | Tensor | None:
    """Return the number of tokens in a slot; None if it is not counted, or while a CUDA graph is recorded."""
    if slot >= len(cache.layers):
        return 0
    length = cache.layers[slot].get_seq_length() if hasattr(cache.layers[slot], "get_seq_length") else None
    if isinstance(length, Tensor):  # static caches count on the device, and reading that waits for it
        return None if length.is_cuda and torch.cuda.is_current_stream_capturing() else length.cpu()
    return length if isinstance(length, int) else None

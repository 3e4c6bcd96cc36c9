"""The expanded layer: a decoder layer that runs its trainable copy too and mixes the two outputs (paper Fig. 5).

The layer keeps its object, its parameter names and its place in the model; only its class is replaced by a subclass.
So masks, position embeddings, hidden-state recording, checkpointing and device placement work as before.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from ctrl.config import ControlConfig
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import Interpolation

ADDED = ("expanded.", "interpolation.")  # what expand adds to a layer


@dataclass
class ForwardPass:
    """State of one forward pass of the model. Layers that gradient checkpointing runs again for backward have none."""

    mask: Any  # the attention mask
    divergences: dict[int, Tensor] | None  # layer index -> divergence per token (batch, seq); None without labels


@dataclass
class Control:
    """What the model and its expanded layers share."""

    config: ControlConfig
    layers: list[int]  # indices of the expanded layers
    total: int  # layers of the base model; the copy of layers[j] has cache slot total + j
    enabled: bool = True  # False inside ctrl.pretrained
    log: Any = None  # ctrl.diagnostics' log while one is open
    warned: bool = False  # whether the user was warned of a training pass without labels
    current: ForwardPass | None = None  # the forward pass while it runs

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        # the current pass holds graph tensors, which cannot be copied; log and warning belong to the original
        return Control(self.config, list(self.layers), self.total, self.enabled)


class ExpandedLayer(nn.Module):
    """Mixin in front of a decoder layer's own class. h -> a = F(h), b = E(h) -> interpolate(a, b, h).

    expanded: the copy E. kind `concat`: E runs beside F; `stack`: after it, out = E(F(h)). attention_handles: the hooks
    that keep attention weights, there for the attention divergence alone.
    """

    expanded: nn.Module
    interpolation: Interpolation | None
    control: Control
    index: int
    kind: str
    attention_handles: Sequence[RemovableHandle] = ()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.attention_handles:
            return self._run(hidden_states, *args, **kwargs)
        try:
            return self._run(hidden_states, *args, **kwargs)
        finally:
            drop_rows(self)

    def _run(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        control = self.control
        if control.enabled:
            add_cache_slots(control, args, kwargs)
        out = super().forward(hidden_states, *args, **kwargs)
        if not control.enabled:
            return out
        a = _hidden(out)
        if self.interpolation is None:
            b = _hidden(self.expanded(a, *args, **kwargs))
            self._note(a, b, None, None)
            return _with_hidden(out, b)
        b = _hidden(self.expanded(hidden_states, *args, **kwargs))
        mixed, alpha = self.interpolation(a, b, hidden_states)
        # In training always, so that a checkpointed layer recomputes just what it computed the first time.
        collected = control.current.divergences if control.current is not None else None
        per_token = self._divergence(a, b, alpha) if self.training or collected is not None else None
        if collected is not None and per_token is not None:
            collected[self.index] = per_token
        self._note(a, b, alpha, per_token)
        return _with_hidden(out, mixed)

    def _note(self, *figures: Any) -> None:
        control = self.control
        if control.log is not None and control.current is not None:
            control.log.note(self, *figures, control.current.mask)

    def _divergence(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        """Per token (batch, seq), scaled by alpha if the config says so."""
        config = self.control.config
        if config.divergence == "attention":
            a, b = (rows_of(branch) for branch in (self, self.expanded))
        a = a.detach() if config.detach_pretrained else a  # before P: what P learns is not the pretrained branch's
        if config.divergence != "attention" and self.interpolation is not None:
            a = self.interpolation.project(a)
        per_token = DIVERGENCES[config.divergence](a, b, config.margin)
        if config.scale_by_alpha:
            alpha = alpha.detach() if config.detach_alpha else alpha
            per_token = per_token * (alpha.squeeze(-1) if alpha.dim() else alpha)
        return per_token


@functools.cache
def expanded_class(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass of cls that runs both branches. It keeps the name, which sharding plans and recorders look for."""
    members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": ExpandedLayer.__doc__}
    return type(cls.__name__, (ExpandedLayer, cls), members)


def expanded_layers(model: nn.Module) -> list[ExpandedLayer]:
    """The expanded layers of a model, in order."""
    return [m for m in model.modules() if isinstance(m, ExpandedLayer)]


def class_before(module: nn.Module, mixin: type) -> type:
    """The class the module had before a mixin was put in front of it."""
    classes = type(module).__mro__  # fully_shard puts classes of its own in front
    return classes[classes.index(mixin) + 1]


def keep_rows(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of an attention module: keep its weights (batch, heads, seq, keys) for the attention divergence."""
    rows: Any = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    module.attention_rows = rows


def rows_of(branch: nn.Module) -> Tensor:
    """The attention weights of one branch's pass under way. A layer's copy is not part of its branch."""
    for name, module in branch.named_modules():
        rows: Tensor | None = module.__dict__.get("attention_rows")
        if rows is not None and not name.startswith("expanded."):
            return rows
    raise RuntimeError(
        f"divergence='attention' needs attention weights, but those of {type(branch).__name__} are None: call "
        "model.set_attn_implementation('eager')"
    )


def drop_rows(layer: nn.Module) -> None:
    """Release both branches' attention weights: they belong to one pass of one layer, and hold its graph."""
    for module in layer.modules():
        module.__dict__.pop("attention_rows", None)


def add_cache_slots(control: Control, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give the copies cache layers of their own behind the base model's, of the same kind as their originals'.

    A copy that shared its original's slot would overwrite its keys and give wrong tokens without an error.
    """
    cache = next((v for v in (*kwargs.values(), *args) if isinstance(v, Cache)), None)
    if cache is None or len(cache.layers) >= control.total + len(control.layers):
        return
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        return  # appends layers by itself, all of one kind
    for j, original in enumerate(control.layers):
        if len(cache.layers) == control.total + j:
            cache.layers.append(_empty_like(cache.layers[original]))


def _empty_like(layer: Any) -> Any:
    filled = layer.get_seq_length() if hasattr(layer, "get_seq_length") else any(layer.has_previous_state.values())
    if int(filled) > 0:
        raise ValueError(
            "past_key_values was filled while the expanded layers did not run (by the base model, or inside "
            "ctrl.pretrained): start from a new cache"
        )
    empty = copy.deepcopy(layer)
    if getattr(empty, "is_initialized", False):
        empty.reset()
    return empty


def _hidden(out: Any) -> Tensor:
    """Decoder layers return a tensor, or (in older models) a tuple that starts with it."""
    return out[0] if isinstance(out, tuple) else out


def _with_hidden(out: Any, hidden: Tensor) -> Any:
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

"""Run a decoder layer together with its trainable copy, and mix the two outputs (paper Fig. 5).

The layer stays the same object at the same place in the model, with the same parameter names; only its class is
replaced by a subclass. So masks, position embeddings, hidden-state recording, checkpointing and device placement work
as before.
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

ADDED = ("expanded.", "interpolation.")  # prefixes of the parameters that expand adds to a layer


@dataclass
class ForwardPass:
    """State of one forward pass of the model. There is none while gradient checkpointing runs layers again."""

    mask: Any  # the attention mask
    divergences: dict[int, Tensor] | None  # layer index -> divergence per token (batch, seq); None without labels


@dataclass
class Control:
    """Data that the model and its expanded layers share."""

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
    """Mixin in front of a decoder layer's own class: a = F(h), b = E(h), out = interpolation(a, b, h).

    expanded: the copy E. kind: `concat` as above, `stack` for out = E(F(h)) without an interpolation.
    attention_handles: hooks that keep attention weights, only if the divergence is `attention`.
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
        # always in training, so that a checkpointed layer computes the same again in the backward pass
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
        """Compute the divergence per token (batch, seq), scaled by alpha if the config says so."""
        config = self.control.config
        if config.divergence == "attention":
            a, b = (rows_of(branch) for branch in (self, self.expanded))
        a = a.detach() if config.detach_pretrained else a  # before project, whose parameters still train
        if config.divergence != "attention" and self.interpolation is not None:
            a = self.interpolation.project(a)
        per_token = DIVERGENCES[config.divergence](a, b, config.margin)
        if config.scale_by_alpha:
            alpha = alpha.detach() if config.detach_alpha else alpha
            per_token = per_token * (alpha.squeeze(-1) if alpha.dim() else alpha)
        return per_token


@functools.cache
def expanded_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Make a subclass of cls that runs both branches. It keeps the name, which sharding plans and recorders use."""
    members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": ExpandedLayer.__doc__}
    return type(cls.__name__, (ExpandedLayer, cls), members)


def expanded_layers(model: nn.Module) -> list[ExpandedLayer]:
    """List the expanded layers of a model in order."""
    return [m for m in model.modules() if isinstance(m, ExpandedLayer)]


def class_before(module: nn.Module, mixin: type) -> type:
    """Return the class of the module before a mixin was put in front of it."""
    classes = type(module).__mro__  # fully_shard puts classes of its own in front
    return classes[classes.index(mixin) + 1]


def keep_rows(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: keep an attention module's weights (batch, heads, seq, keys) for the attention divergence."""
    rows: Any = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    module.attention_rows = rows


def rows_of(branch: nn.Module) -> Tensor:
    """Return the attention weights kept in one branch: a layer without its copy, or a copy."""
    for name, module in branch.named_modules():
        rows: Tensor | None = module.__dict__.get("attention_rows")
        if rows is not None and not name.startswith("expanded."):
            return rows
    raise RuntimeError(
        f"divergence='attention' needs attention weights, but those of {type(branch).__name__} are None: call "
        "model.set_attn_implementation('eager')"
    )


def drop_rows(layer: nn.Module) -> None:
    """Delete the attention weights of both branches, which hold the graph of this pass."""
    for module in layer.modules():
        module.__dict__.pop("attention_rows", None)


def add_cache_slots(control: Control, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Append cache layers for the copies after those of the base model, each of the same kind as its original's.

    In the slot of its original a copy would overwrite keys, and generation would be wrong without an error.
    """
    cache = next((v for v in (*kwargs.values(), *args) if isinstance(v, Cache)), None)
    if cache is None or len(cache.layers) >= control.total + len(control.layers):
        return
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        return  # this cache appends layers by itself, all of one kind
    for j, original in enumerate(control.layers):
        if len(cache.layers) == control.total + j:
            cache.layers.append(_empty_like(cache.layers[original]))


def _empty_like(layer: Any) -> Any:
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


def _hidden(out: Any) -> Tensor:
    """Return the hidden state in a decoder layer's output: a tensor or, in older models, the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out


def _with_hidden(out: Any, hidden: Tensor) -> Any:
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

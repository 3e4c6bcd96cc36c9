"""Activation checkpointing: run layers a second time in the backward pass, in place of keeping what they computed."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import nn

from ctrl.layer import ExpandedLayer
from ctrl.structure import decoder_layers
from experiments.models.head import inner

Checkpointing = Literal["none", "frozen", "all"]


def checkpoint_layers(model: Any, how: Checkpointing, label: str = "this arm") -> None:
    """Switch it on for all decoder layers, or for what is frozen of them alone: layers, and halves of expanded ones.

    Results do not change. Below the first layer that trains nothing is kept and nothing runs again: transformers lets
    the embeddings require gradients for its reentrant checkpoints, which would send them down to the first layer, so
    that is undone here. Ours are not reentrant, which would lose the divergence. label: of the arm, in a warning, which
    Python shows once for each text.
    """
    if how == "none":
        return
    causal = inner(model)
    if hasattr(causal, "activation_checkpointing_enable"):
        causal.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if getattr(causal, "_require_grads_hook", None) is not None or getattr(causal, "_require_grads_hooks", None):
        causal.disable_input_require_grads()
    layers = list(decoder_layers(causal)) if how == "frozen" else []
    if layers and not any(isinstance(layer, ExpandedLayer) or not _trains(layer) for layer in layers):
        warnings.warn(
            f"training.checkpointing frozen has no effect: weights train in every layer of {label}, so set it to all",
            stacklevel=1,
        )
    for layer in layers:
        if isinstance(layer, ExpandedLayer):
            layer.control.recomputes = True
        if _trains(layer):
            vars(layer)["gradient_checkpointing"] = False


def why_not(model: Any) -> str | None:
    """Return the reason why a model's layers cannot be run again, or None if they can."""
    if getattr(inner(model), "supports_gradient_checkpointing", False):
        return None
    return f"{type(inner(model)).__name__} does not support it in transformers: set training.checkpointing to none"


def _trains(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())

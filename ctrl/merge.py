"""Merge back: fold the expanded weights into the pretrained ones after training; the result is a plain model.

W = mix(W_pretrained, W_expanded, alpha), elementwise lerp. Mixing weights is not mixing outputs: the result is
exact at alpha 0 and 1 and an approximation between (paper section 3.4).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.config import ConfigError
from ctrl.layer import ExpandedLayer
from ctrl.model import ControlModel, expanded_layers, require_expanded

MERGEABLE = ("lerp",)


def merge_back(model: nn.Module, in_place: bool = False) -> PreTrainedModel:
    """Return a plain transformers model of the base class with alpha's share of the copies in its weights.

    in_place: take the given model apart instead of a copy of it (half the memory). Raises ConfigError for an
    interpolation that has no merged form.
    """
    expanded: Any = require_expanded(model)
    config = expanded.control.config
    if config.structure != "concat" or config.interpolation not in MERGEABLE:
        raise ConfigError(
            f"merge_back cannot fold structure={config.structure!r}, interpolation={config.interpolation!r}; "
            f"it takes concat with {', '.join(MERGEABLE)}"
        )
    plain = expanded if in_place else copy.deepcopy(expanded)
    for layer in expanded_layers(plain):
        _fold(layer)
        _strip(layer)
    del plain.control
    plain.__class__ = _base_class(plain, ControlModel)
    plain.requires_grad_(True)
    return plain


@torch.no_grad()
def _fold(layer: ExpandedLayer) -> None:
    """W <- (1 - alpha) W + alpha W_expanded, in fp32, for every parameter of the layer."""
    assert layer.interpolation is not None
    alpha = torch.sigmoid(layer.interpolation.theta.detach().float()).item()
    expanded = dict(layer.expanded.named_parameters())
    for name, parameter in layer.named_parameters():
        if name in expanded:
            mixed = torch.lerp(parameter.float(), expanded[name].float(), alpha)
            parameter.data = mixed.to(expanded[name].dtype)


def _strip(layer: ExpandedLayer) -> None:
    for name in ("expanded", "interpolation", "control", "index", "kind"):
        delattr(layer, name)
    layer.__class__ = _base_class(layer, ExpandedLayer)


def _base_class(module: nn.Module, mixin: type) -> type:
    """The class the module had before expand put the mixin in front of it."""
    return next(cls for cls in type(module).__mro__[1:] if not issubclass(cls, mixin) and cls is not mixin)

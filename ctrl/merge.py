"""Merge back: fold the expanded weights into the pretrained ones after training; the result is a plain model.

W = mix(W_pretrained, W_expanded, alpha): elementwise lerp for lerp, row-wise slerp for slerp, dlerp and dlerpin (paper
section 3.4). Mixing weights is not mixing outputs: exact at alpha 0 and 1, an approximation between, so look at
`merge_gap`. Stacked copies are layers of their own: they are put into the stack and nothing is approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.control_model import IGNORED, ControlModel
from ctrl.copies import original_class
from ctrl.errors import ConfigError
from ctrl.gap import Batches, MergeGap, logits, merge_gap
from ctrl.interpolation import lerp, slerp
from ctrl.layer import ExpandedLayer
from ctrl.model import expanded_layers, require_expanded
from ctrl.structure import decoder_layers

MIXERS = {"lerp": lerp, "slerp": slerp, "dlerp": slerp, "dlerpin": slerp}


@overload
def merge_back(
    model: nn.Module,
    alpha: float | Sequence[float] | None = None,
    batches: Batches | None = None,
    in_place: bool = False,
    gap_on: None = None,
) -> PreTrainedModel: ...
@overload
def merge_back(
    model: nn.Module,
    alpha: float | Sequence[float] | None = None,
    batches: Batches | None = None,
    in_place: bool = False,
    *,
    gap_on: Batches,
) -> tuple[PreTrainedModel, MergeGap]: ...
def merge_back(
    model: nn.Module,
    alpha: float | Sequence[float] | None = None,
    batches: Batches | None = None,
    in_place: bool = False,
    gap_on: Batches | None = None,
) -> PreTrainedModel | tuple[PreTrainedModel, MergeGap]:
    """Return a plain transformers model of the base class with alpha's share of the copies in its weights.

    alpha: one share, or one per expanded layer in order; default: measured on `batches` (dicts with input_ids and
    attention_mask; the running average a per-token strategy needs), else sigmoid(theta). in_place: take the given
    model apart instead of a copy of it (half the memory). gap_on: text on which both are compared; the result is then
    (plain model, MergeGap). Raises ConfigError where there is no merged form.
    """
    if in_place and gap_on is not None:
        raise ConfigError("gap_on compares with the expanded model, which in_place=True takes apart: leave one of them")
    expanded: Any = require_expanded(model)
    _check_mergeable(expanded)
    alphas = _alphas(expanded, alpha, batches)
    plain = expanded if in_place else copy.deepcopy(expanded)
    for layer, share in zip(expanded_layers(plain), alphas, strict=True):
        if layer.kind == "concat":
            _set_weights(layer, _mixed_weights(layer, share))
    stacked = {layer.index: layer.expanded for layer in layers_of_kind(plain, "stack")}
    _strip(plain)
    _insert(plain, stacked)
    plain.requires_grad_(True)
    return plain if gap_on is None else (plain, merge_gap(model, plain, gap_on))


def merge_models(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> PreTrainedModel:
    """One plain model from several expanded from the same base: W = W_0 + sum_i w_i (W_i - W_0), W_i merged back alone.

    weights: one per model, default 1/n each. Raises ConfigError unless all are concat models of one base.
    """
    shares = list(weights) if weights is not None else [1 / len(models)] * len(models)
    if len(shares) != len(models) or not models:
        raise ConfigError(f"merge_models needs one weight per model, but got {len(shares)} for {len(models)} models")
    expanded = [require_expanded(model) for model in models]
    if any(m.control.config.structure != "concat" for m in expanded):
        raise ConfigError("merge_models takes structure 'concat': stacked copies have no place in a common model")
    base = _base_copy(expanded[0])
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for model, share in zip(expanded, shares, strict=True):
        _check_same_base(_base_copy(model), start)
        merged = merge_back(model).state_dict()
        for name, tensor in base.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_((merged[name].float() - start[name].float()).to(tensor.dtype), alpha=share)
    return base


@torch.no_grad()
def measured_alphas(model: nn.Module, batches: Batches) -> list[float]:
    """Mean alpha over real tokens of each expanded layer, in order; None-alpha layers (stack) give nan."""
    from ctrl.diagnostics import diagnostics

    layers = expanded_layers(model)
    with diagnostics(model) as log:
        for batch in batches:
            logits(model, {k: v for k, v in batch.items() if k != "labels"})
    if not log.raw and layers_of_kind(model, "concat"):
        raise ConfigError("no batch was given to measure alpha on: pass batches, or alpha itself")
    means = log.mean("alpha")
    return [means.get(layer.index, float("nan")) for layer in layers]


def layers_of_kind(model: nn.Module, kind: str) -> list[ExpandedLayer]:
    return [layer for layer in expanded_layers(model) if layer.kind == kind]


def _alphas(model: nn.Module, alpha: float | Sequence[float] | None, batches: Batches | None) -> list[float]:
    layers = expanded_layers(model)
    if isinstance(alpha, int | float):
        return [float(alpha)] * len(layers)
    if alpha is not None:
        if len(alpha) != len(layers):
            raise ConfigError(
                f"alpha must be one number or {len(layers)}, one per expanded layer, but got {len(alpha)}"
            )
        return [float(a) for a in alpha]
    if batches is not None:
        return measured_alphas(model, batches)
    thetas = [layer.interpolation.theta if layer.interpolation is not None else None for layer in layers]
    return [float("nan") if t is None else torch.sigmoid(t.detach().float()).item() for t in thetas]


def _check_mergeable(model: Any) -> None:
    config = model.control.config
    if config.interpolation not in MIXERS and layers_of_kind(model, "concat"):
        raise ConfigError(
            f"interpolation={config.interpolation!r} has no merged form (its mix is not a mix of weights); "
            f"merge_back takes {', '.join(MIXERS)}"
        )
    if config.norm_mix != 0.0:
        raise ConfigError("relaxed norms (norm_mix) have no place in a plain model: merge_back needs norm_mix=0")


def _mixed_weights(layer: ExpandedLayer, alpha: float) -> dict[str, Tensor]:
    """mix(W, W_expanded, alpha) in fp32 for every parameter of the layer; rows are tokens to slerp."""
    mix = MIXERS[layer.control.config.interpolation]
    share = torch.tensor(alpha)
    return {
        name: mix(w.detach().float(), e.detach().float(), share.to(w.device)).to(e.dtype)
        for name, w, e in _pairs(layer)
    }


def _pairs(layer: ExpandedLayer) -> list[tuple[str, Tensor, Tensor]]:
    """(name, pretrained weight, expanded weight) of one layer; low-rank copies are written out in full."""
    branch = layer.expanded
    if layer.control.config.expanded == "lora":
        branch = copy.deepcopy(branch)
        for module in branch.modules():
            for name, child in list(module.named_children()):
                if hasattr(child, "base_layer"):
                    low_rank: Any = child
                    low_rank.merge()
                    setattr(module, name, low_rank.base_layer)
    expanded = dict(branch.named_parameters())
    return [(name, w, expanded[name]) for name, w in layer.named_parameters() if name in expanded]


def _set_weights(layer: ExpandedLayer, weights: dict[str, Tensor]) -> None:
    for name, parameter in layer.named_parameters():
        if name in weights:
            parameter.data = weights[name]


def _strip(model: Any) -> None:
    """Take away all that expand added: the model is of its base class again."""
    for layer in expanded_layers(model):
        for name in ("expanded", "interpolation", "control", "index", "kind"):
            delattr(layer, name)
        layer.__class__ = _class_before(layer, ExpandedLayer)
    model.config.__dict__.pop(IGNORED, None)
    del model.control
    model.__class__ = _class_before(model, ControlModel)


def _class_before(module: nn.Module, mixin: type) -> type:
    """The class the module had before a mixin was put in front of it."""
    return next(cls for cls in type(module).__mro__[1:] if not issubclass(cls, mixin))


def _insert(model: PreTrainedModel, stacked: dict[int, nn.Module]) -> None:
    """Put stacked copies behind their originals and make the config count them."""
    if not stacked:
        return
    layers = decoder_layers(model)
    kinds = [index for index in range(len(layers)) for _ in range(2 if index in stacked else 1)]
    grown = []
    for index, layer in enumerate(layers):
        grown.append(layer)
        if index in stacked:
            copy_of = stacked[index]
            for module in copy_of.modules():
                module.__class__ = original_class(module)
            grown.append(copy_of)
    for slot, layer in enumerate(grown):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = slot  # type: ignore[assignment]
    for slot in range(len(layers)):
        layers[slot] = grown[slot]
    layers.extend(grown[len(layers) :])
    config = model.config.get_text_config(decoder=True)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, [value[index] for index in kinds])  # layer_types, no_rope_layers, ...
    config.num_hidden_layers = len(grown)


def _base_copy(model: Any) -> PreTrainedModel:
    plain = copy.deepcopy(model)
    _strip(plain)
    return plain


def _check_same_base(base: nn.Module, start: dict[str, Tensor]) -> None:
    state = base.state_dict()
    if state.keys() != start.keys() or any(not torch.equal(state[n], start[n]) for n in start):
        raise ConfigError("the models were not expanded from the same base: their pretrained weights differ")

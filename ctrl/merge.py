"""Merge the expanded weights into the pretrained ones after training; the result is a plain model.

W = mix(W_pretrained, W_expanded, alpha) with the interpolation's `merged`: elementwise lerp or row-wise slerp (paper
section 3.4). Mixing weights is not mixing outputs: it is exact at alpha 0 and 1 and an approximation between them, so
check `merge_gap`. Stacked copies become layers of the plain model, without an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.control_model import bare_expanded, require_expanded
from ctrl.divergence import real_or_all
from ctrl.errors import ConfigError, warn
from ctrl.expansion import deep_copy, take_off
from ctrl.facts import note_merged
from ctrl.gap import Batches, MergeGap, each, evaluating, merge_gap, readable, run
from ctrl.generation import keep_settings
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import ADDED, ExpandedLayer, expanded_layers
from ctrl.numerics import widen
from ctrl.offloaded import held
from ctrl.plain import check_rebuilds, insert, note_own_head, source_layers, whole_model
from ctrl.quantised import refuse_quantised
from ctrl.sharded import whole
from ctrl.streams import alpha_of_tokens, by_token
from ctrl.structure import refuse_computed_weights

Alphas = float | Sequence[float] | None  # of all expanded layers, or one per expanded layer; None: the model's own


@overload
def merge_back(
    model: nn.Module, alpha: Alphas = ..., batches: Batches | None = ..., in_place: bool = ..., gap_on: None = ...
) -> PreTrainedModel: ...
@overload
def merge_back(
    model: nn.Module, alpha: Alphas = ..., batches: Batches | None = ..., *, gap_on: Batches
) -> tuple[PreTrainedModel, MergeGap]: ...
def merge_back(
    model: nn.Module,
    alpha: Alphas = None,
    batches: Batches | None = None,
    in_place: bool = False,
    gap_on: Batches | None = None,
) -> PreTrainedModel | tuple[PreTrainedModel, MergeGap]:
    """Return a plain transformers model of the base class, with the copies mixed into its weights.

    alpha: weight of the copies, one number or one per expanded layer in order. Default: the mean alpha measured on
        `batches` if given, else the alpha that `at_alpha` fixes, else sigmoid(theta).
    batches: text, dicts with input_ids and attention_mask. Pass it if alpha depends on the token, since sigmoid(theta)
        is not its mean then.
    in_place: change the given model instead of a copy of it (half the memory). A sharded or offloaded one is copied.
    gap_on: text on which the two models are compared; the result is then (plain model, MergeGap).

    Weights keep the dtypes of the pretrained ones. If the model is sharded over processes (FSDP2), all processes call
    this with the same texts, and each gets the whole plain model in host memory; if that is too much, `ctrl.save` the
    model, then load and merge it in one process. Warns if all copies are stacked, since nothing is mixed then. Raises
    ConfigError if interpolation or norms have no merged form, or if no config would rebuild the plain model.
    """
    if in_place and gap_on is not None:
        raise ConfigError("gap_on compares with the expanded model, which in_place=True changes: use only one of them")
    expanded: Any = bare_expanded(model)
    batches, gap_on = readable(batches), readable(gap_on)
    check_mergeable(expanded)
    sources = source_layers(expanded)
    check_rebuilds(expanded, sources)
    alphas = layer_alphas(expanded, alpha, batches)
    if not layers_of_kind(expanded, "concat"):
        warn(
            "structure 'stack' has no branches to mix: merge_back only turns the copies into layers of the plain model "
            "(alpha and batches change nothing)",
            stacklevel=2,
        )
    plain = whole_model(expanded)
    if plain is expanded and not in_place:
        plain = deep_copy(expanded)
    elif plain is expanded:
        expanded.control.warn_of_references("merge_back(in_place=True)")
    for layer, layer_alpha in zip(expanded_layers(plain), alphas, strict=True):
        if layer.kind == "concat":
            _set_weights(layer, mixed_weights(layer, layer_alpha))
    stacked = {layer.index: layer.expanded for layer in layers_of_kind(plain, "stack")}
    keep_settings(plain)
    take_off(plain)
    insert(plain, stacked, sources)
    note_own_head(plain)
    note_merged(plain)
    plain.requires_grad_(True)
    return plain if gap_on is None else (plain, merge_gap(model, plain, gap_on))


@torch.no_grad()
def measured_alphas(model: nn.Module, batches: Batches) -> list[float]:
    """Measure the mean alpha over all real tokens of all batches, per expanded layer in order; NaN for stacked layers.

    Runs in eval mode. Raises ConfigError if the batches have no real token, and inside `ctrl.pretrained`.
    """
    layers, control = expanded_layers(model), require_expanded(model).control
    if not control.enabled:
        raise ConfigError("inside ctrl.pretrained no layer mixes, so alpha cannot be measured: merge outside of it")
    dim = control.batch_dim
    gates = [layer.interpolation for layer in layers if layer.interpolation is not None]
    sums, counts = dict.fromkeys(gates, 0.0), dict.fromkeys(gates, 0)
    mask: Tensor | None = None

    def note(gate: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        mixed, alpha = (by_token(output[0], dim), alpha_of_tokens(output[1], dim))
        alphas = alpha.double().expand(*mixed.shape[:2], 1)[real_or_all(mask, mixed)]
        sums[gate] += float(alphas.sum())
        counts[gate] += alphas.numel()

    hooks = [gate.register_forward_hook(note) for gate in gates]
    try:
        with evaluating(model):
            for batch in each(batches):
                mask = batch.get("attention_mask")
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(counts.values()):
        raise ConfigError("no real token to measure alpha on: pass batches of text with an attention_mask, or alpha")
    gate_of = [layer.interpolation for layer in layers]
    return [float("nan") if gate is None else sums[gate] / counts[gate] for gate in gate_of]


def layers_of_kind(model: nn.Module, kind: str) -> list[ExpandedLayer]:
    return [layer for layer in expanded_layers(model) if layer.kind == kind]


def layer_alphas(model: Any, alpha: Alphas, batches: Batches | None) -> list[float]:
    """Return one alpha per expanded layer in order: as given, else measured on batches, else the model's own.

    Raises ConfigError if the number is wrong or a value is not finite.
    """
    layers = expanded_layers(model)
    given: Any = alpha
    alpha = given.tolist() if hasattr(given, "tolist") else alpha  # a tensor or an array
    if isinstance(alpha, bool | str | Mapping | Set) or not isinstance(alpha, int | float | Iterable | None):
        raise ConfigError(f"alpha must be a number, or one per expanded layer, but got {alpha!r}")
    if isinstance(alpha, int | float):
        alphas = [float(alpha)] * len(layers)
    elif alpha is not None:
        alphas = as_numbers(alpha, "alpha")
    elif batches is not None:
        alphas = measured_alphas(model, batches)
    else:
        _warn_of_gates(model)
        alphas = [_own_alpha(layer) for layer in layers]
    if len(alphas) != len(layers):
        raise ConfigError(f"alpha must be one number or {len(layers)}, one per expanded layer, but got {len(alphas)}")
    for layer, layer_alpha in zip(layers, alphas, strict=True):
        if layer.kind == "concat" and not math.isfinite(layer_alpha):
            raise ConfigError(
                f"alpha={layer_alpha} for layer {layer.index} is not finite: give a number, from 0 (pretrained) to 1 "
                "(the copy)"
            )
    return alphas


def as_numbers(values: Iterable[Any], name: str) -> list[float]:
    """Return numbers, or tensors of one number, as floats. Raises ConfigError for a truth value, a text and others."""
    given = [one.item() if hasattr(one, "item") else one for one in values]
    if wrong := [one for one in given if isinstance(one, bool) or not isinstance(one, Real)]:
        raise ConfigError(f"{name}: {wrong[0]!r} is no number: give one number for each")
    return [float(one) for one in given]


def _own_alpha(layer: ExpandedLayer) -> float:
    """Return the alpha that `at_alpha` fixes, else sigmoid(theta); NaN for a stacked layer."""
    gate = layer.interpolation
    if gate is None:
        return float("nan")
    theta = whole(held(gate, "theta")).float()
    return gate.fixed_alpha.item() if gate.fixed_alpha is not None else torch.sigmoid(theta).item()


def _warn_of_gates(model: Any) -> None:
    """Warn if alpha depends on the token, since sigmoid(theta) leaves out the weights of the gate."""
    gates = [layer.interpolation for layer in layers_of_kind(model, "concat")]
    dials = [gate for gate in gates if gate is not None and gate.per_token and gate.fixed_alpha is None]
    if any(whole(held(gate, "theta")).isfinite().all() and _gate_has_weights(gate) for gate in dials):
        warn(
            f"alpha of {model.control.config.interpolation!r} depends on the token, but without text its weights are "
            "merged at sigmoid(theta), as if the gate had none. Pass batches of text to merge at the mean alpha, or "
            "give alpha",
            stacklevel=4,
        )


def _gate_has_weights(gate: nn.Module) -> bool:
    """Whether any parameter but theta differs from 0. A gate of the user's own may give them any names, in any part."""
    found = (held(part, n) for part in gate.modules() for n, _ in part.named_parameters(recurse=False) if n != "theta")
    return any(bool(whole(weights).any()) for weights in found)


def check_mergeable(model: Any) -> None:
    """Raise ConfigError if a plain model cannot hold the expanded model's interpolation or norms."""
    refuse_quantised(model, "merge_back")
    refuse_computed_weights(expanded_layers(model), "merge_back")
    config = model.control.config
    if INTERPOLATIONS[config.interpolation].merged is None and layers_of_kind(model, "concat"):
        mergeable = [name for name, cls in INTERPOLATIONS.items() if cls.merged is not None]
        raise ConfigError(
            f"interpolation={config.interpolation!r} has no merged form (its mix is not a mix of weights); "
            f"merge_back supports {', '.join(mergeable)}"
        )
    if config.norm_mix != 0.0:
        raise ConfigError(
            f"a plain model has no relaxed norms: merge_back needs norm_mix=0, but got {config.norm_mix!r}"
        )


@torch.no_grad()
def mixed_weights(layer: ExpandedLayer, alpha: float) -> dict[str, Tensor]:
    """Compute mix(W, W_expanded, alpha) for every weight of the layer, in fp32 for half types."""
    mix = INTERPOLATIONS[layer.control.config.interpolation].merged
    assert mix is not None  # check_mergeable has made sure
    mixed = {}
    for name, w, e in _pairs(layer):
        wide = widen(w)
        mixed[name] = mix(wide, e.to(wide.dtype), torch.tensor(alpha, dtype=wide.dtype, device=w.device))
    return mixed


def _pairs(layer: ExpandedLayer) -> list[tuple[str, Tensor, Tensor]]:
    """List (name, pretrained weight, expanded weight) of one layer; W + B A of low-rank copies is not rounded."""
    expanded: dict[str, Tensor] = dict(layer.expanded.named_parameters())
    for name, module in layer.expanded.named_modules():
        low_rank: Any = module
        if hasattr(module, "get_delta_weight"):
            base = widen(low_rank.base_layer.weight)
            changes = [low_rank.get_delta_weight(adapter).to(base.dtype) for adapter in low_rank.active_adapters]
            expanded[f"{name}.weight"] = base + sum(changes)
            expanded |= {f"{name}.bias": bias for bias in [low_rank.base_layer.bias] if bias is not None}
    pairs = [(name, w, expanded[name]) for name, w in layer.named_parameters() if name in expanded]
    return [*pairs, *_moved_buffers(layer)]


def _moved_buffers(layer: ExpandedLayer) -> list[tuple[str, Tensor, Tensor]]:
    """List the saved buffers in which the copy differs: biases of routers that a balancing of experts has moved."""
    own, saved = dict(layer.expanded.named_buffers()), layer.state_dict().keys()
    pairs = [(name, w, own[name]) for name, w in layer.named_buffers() if name in own and name in saved]
    return [(name, w, e) for name, w, e in pairs if w.is_floating_point() and not torch.equal(w.to(e.dtype), e)]


def _set_weights(layer: ExpandedLayer, weights: dict[str, Tensor]) -> None:
    """Give the layer these weights as new parameters: a model of ctrl.reference may share the former ones."""
    named = layer.named_parameters()
    merged = {id(p): nn.Parameter(weights[name].to(p.dtype)) for name, p in named if name in weights}
    for name, parameter in list(layer.named_parameters(remove_duplicate=False)):  # tied weights stay so
        if id(parameter) in merged and not name.startswith(ADDED):
            path, _, own = name.rpartition(".")
            setattr(layer.get_submodule(path), own, merged[id(parameter)])
    for name, buffer in list(layer.named_buffers()):
        if name in weights:
            path, _, own = name.rpartition(".")
            setattr(layer.get_submodule(path), own, weights[name].to(buffer.dtype))

"""Merge several expanded models of one base into one plain model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.computes import computes, differences
from ctrl.control_model import bare_expanded
from ctrl.errors import ConfigError
from ctrl.expansion import deep_copy, take_off
from ctrl.facts import note_merged
from ctrl.gap import Batches, MergeGap, merge_gap, readable
from ctrl.generation import keep_settings
from ctrl.layer import ADDED, ExpandedLayer
from ctrl.merge import Alphas, as_numbers, check_mergeable, layer_alphas, mixed_weights
from ctrl.numerics import widen
from ctrl.plain import note_own_head, whole_model


@torch.no_grad()
def merge_models(
    models: Sequence[nn.Module],
    weights: Sequence[float] | None = None,
    alpha: float | Sequence[Alphas] | None = None,
    batches: Batches | None = None,
    gap_on: Batches | None = None,
) -> PreTrainedModel | tuple[PreTrainedModel, list[MergeGap]]:
    """Merge models expanded from one base into one plain model: W = W_0 + sum_i w_i (W_i - W_0), W_i merged back alone.

    weights: w_i, one per model; default 1/n each.
    alpha: one number for all models, or one entry per model as in `merge_back`. Default: measured for each model on
        `batches` if given, else the model's own.
    batches, gap_on: text; a generator is read into a list, since each model reads it. With gap_on each model is
        compared with the result, which is then (plain model, one MergeGap per model).

    Sums are computed in fp32 and rounded once. Sharded models: as in `merge_back`. Raises ConfigError unless all are
    concat models of one base whose other weights stayed frozen.
    """
    for name, given in (("models", models), ("weights", weights), ("alpha", alpha)):
        if isinstance(given, Mapping | Set):  # a list of one would be of its keys
            raise ConfigError(f"{name} must be a list in the order of the models, but got a {type(given).__name__}")
    factors = as_numbers(weights, "weights") if weights is not None else [1 / len(models) for _ in models]
    if len(factors) != len(models) or not models:
        raise ConfigError(f"merge_models needs one weight per model, but got {len(factors)} for {len(models)} models")
    if not all(math.isfinite(factor) for factor in factors):
        raise ConfigError(f"merge_models needs finite weights, but got {factors}")
    batches, gap_on = readable(batches), readable(gap_on)
    expanded: list[Any] = [whole_model(bare_expanded(model)) for model in models]
    for model in expanded:
        check_mergeable(model)
    if any(m.control.config.structure != "concat" for m in expanded):
        raise ConfigError(
            "merge_models needs structure='concat': stacked copies of several models cannot share one plain model"
        )
    start = _base_state(expanded[0])
    computed = computes(expanded[0].config)
    for number, model in enumerate(expanded):
        _check_same_base(model, number, start)
        if different := differences(computed, computes(model.config)):
            raise ConfigError(f"model {number} and the first have configs that compute different things: {different}")
    totals: dict[str, Tensor] = {}
    for model, factor, alphas in zip(expanded, factors, _per_model(alpha, len(models)), strict=True):
        for name, mixed in _merged(model, alphas, batches).items():
            before = widen(start[name])
            totals[name] = totals.get(name, before) + factor * (mixed.to(before.device) - before)
    plain = deep_copy(expanded[0])
    keep_settings(plain)
    take_off(plain)
    for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
        if name in totals:
            tensor.copy_(totals[name])
    note_own_head(plain)
    note_merged(plain)
    plain.requires_grad_(True)
    return plain if gap_on is None else (plain, [merge_gap(model, plain, gap_on) for model in models])


def _per_model(alpha: float | Sequence[Alphas] | None, count: int) -> list[Alphas]:
    if alpha is None or isinstance(alpha, int | float):
        return [alpha] * count
    if len(alpha) != count:
        raise ConfigError(f"alpha must be one number or one entry per model, but got {len(alpha)} for {count} models")
    return list(alpha)


def _merged(model: Any, alpha: Alphas, batches: Batches | None) -> dict[str, Tensor]:
    """Compute the merged weights of a model's expanded layers, not rounded: name in the plain model -> weight."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, ExpandedLayer)]
    alphas = layer_alphas(model, alpha, batches)
    return {
        f"{prefix}.{name}": mixed
        for (prefix, layer), layer_alpha in zip(layers, alphas, strict=True)
        for name, mixed in mixed_weights(layer, layer_alpha).items()
    }


def _base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of an expanded model without what expand added; its tensors keep requires_grad."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, ExpandedLayer)]
    added = tuple(f"{name}.{part}" for name in layers for part in ADDED)
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if not n.startswith(added)}


def _check_same_base(model: nn.Module, number: int, start: dict[str, Tensor]) -> None:
    state = _base_state(model)
    trained = [name for name, tensor in state.items() if tensor.requires_grad]
    if trained:
        raise ConfigError(
            f"model {number} trains {trained[0]} besides its copies, so its value in the common base is not known: "
            "freeze it at the base's value (requires_grad_(False)), or merge_back each model and mix the results"
        )
    if state.keys() != start.keys() or any(not torch.equal(state[n].to(t.device), t) for n, t in start.items()):
        raise ConfigError(
            f"model {number} and the first were not expanded from the same base: their pretrained weights differ"
        )

"""Where copies go: find a model's decoder layers, choose places, make a copy that has a cache slot of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.config import ConfigError, ControlConfig

# Projections back into the residual stream, by the names that model families use; zeroed, a layer is the identity.
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
MLP_OUT = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "out_proj")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's stack of decoder layers, found by structure. Raises ConfigError with the reason if there is none."""
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{name} is an encoder-decoder; expand takes decoder-only causal language models")
    count = getattr(config, "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    stacks = [m for m in stacks if all(_cache_slots(layer) for layer in m)]
    if len(stacks) != 1:
        raise ConfigError(
            f"{name} has {len(stacks)} stacks of {count} decoder layers that each own a cache slot (an attention with "
            "an integer layer_idx), expected exactly one: this architecture cannot be expanded"
        )
    _refuse_index_arithmetic(model, stacks[0])
    return stacks[0]


def place(layers: int | Sequence[int], total: int) -> list[int]:
    """Indices of the layers to expand: copy j = 1..n at floor(j L / n) - 1, or the list given, sorted.

    Where n divides L these are the layers l with (l + 1) divisible by L/n. Raises ConfigError if L has no such layer.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise ConfigError(f"layers={layers}: the model has {total} layers, give a count in 1..{total}")
        return [j * total // layers - 1 for j in range(1, layers + 1)]
    beyond = [i for i in layers if not 0 <= i < total]
    if beyond:
        raise ConfigError(f"layers={list(layers)}: the model has layers 0..{total - 1}, but not {beyond}")
    return sorted(layers)


def branch_kinds(config: ControlConfig, count: int) -> list[str]:
    """`concat` or `stack` for each expanded layer in order; hybrid alternates stack, concat, ..."""
    if config.structure == "hybrid":
        return ["stack" if j % 2 == 0 else "concat" for j in range(count)]
    return [config.structure] * count


def copy_layer(layer: nn.Module, slot: int, shared: Sequence[Any]) -> nn.Module:
    """A trainable copy of a decoder layer, with its cache slot set.

    shared: objects the copy keeps in common with the original (configs: else a change of the attention
    implementation would not reach the copy). The copy's recorded classes become plain modules, so that hidden
    states and attentions are not recorded twice and gradient checkpointing does not nest.
    """
    twin = copy.deepcopy(layer, {id(obj): obj for obj in shared})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = slot  # type: ignore[assignment]
    twin.__class__ = plain_class(type(layer))  # type: ignore[arg-type]
    twin.__dict__.pop("gradient_checkpointing", None)
    for module in twin.modules():
        if module is not twin and is_attention(module):
            module.__class__ = plain_class(type(module))  # type: ignore[arg-type]
    # a frozen or bf16-held base must not decide the precision of what trains, but its dtype does (loading, merging)
    return twin.requires_grad_(True)


@functools.cache
def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The same behaviour as cls, but derived from nn.Module alone, so that isinstance checks do not match it."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(nn.Module)]):
        if base.__name__ == "GradientCheckpointingLayer":
            continue
        members.update({k: v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__", "__init__")})
    forward = members["forward"]
    members["forward"] = getattr(forward, "__wrapped__", forward) if _checkpoints(forward) else forward
    for name, member in members.items():
        if "__class__" in getattr(getattr(member, "__code__", None), "co_freevars", ()):
            raise ConfigError(f"{cls.__name__}.{name} calls super(); its layers cannot be copied as plain modules")
    return type(f"{cls.__name__}Copy", (nn.Module,), members)


def zero_outputs(layer: nn.Module) -> None:
    """Zero what a layer writes into the residual stream, so that it is the identity (LLaMA Pro, arXiv 2401.02415)."""
    attention = [p for m in layer.modules() if is_attention(m) for p in _projections(m, ATTENTION_OUT)]
    inside = {id(m) for a in layer.modules() if is_attention(a) for m in a.modules()}
    mlp = [p for m in layer.modules() if id(m) not in inside for p in _projections(m, MLP_OUT, skip=inside)]
    if not attention or not mlp:
        missing = "attention output" if not attention else "MLP down"
        raise ConfigError(
            f"structure 'stack' zeroes a layer's output projections, but {type(layer).__name__} has no {missing} "
            "projection under a known name (see ctrl.structure.ATTENTION_OUT, MLP_OUT); use structure='concat'"
        )
    with torch.no_grad():
        for parameter in [*attention, *mlp]:
            parameter.zero_()


def _projections(module: nn.Module, names: Sequence[str], skip: set[int] | None = None) -> list[nn.Parameter]:
    """Weights and biases directly under the module that carry one of the names (experts hold bare parameters)."""
    found: list[nn.Parameter] = []
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Parameter):
            found.append(child)
        elif isinstance(child, nn.Module) and id(child) not in (skip or set()):
            found.extend(child.parameters(recurse=False))
    return found


def is_attention(module: nn.Module) -> bool:
    """An attention module, by structure: it has projections and names its cache slot."""
    return isinstance(getattr(module, "layer_idx", None), int) and bool(list(module.children()))


def _cache_slots(layer: nn.Module) -> list[int]:
    return [m.layer_idx for m in layer.modules() if isinstance(getattr(m, "layer_idx", None), int)]  # type: ignore[misc]


def _checkpoints(forward: Any) -> bool:
    return getattr(forward, "__code__", None) is not None and forward.__code__.co_name == "forward_with_checkpointing"


def _refuse_index_arithmetic(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """A copy's layer_idx names a cache slot beyond the last layer; models that compute with it would go wrong."""
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ConfigError(
            "scale_attn_by_inverse_layer_idx=True: attention depends on the layer's index; set it to False"
        )
    for module in layers.modules():
        if getattr(module, "is_kv_shared_layer", False):
            raise ConfigError(f"{type(module).__name__} reads another layer's keys and values; it cannot be expanded")

"""The trainable copy of a decoder layer: its own cache slot, full-rank or low-rank, with plain or relaxed norms."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.interpolation import Interpolation
from ctrl.structure import is_attention

# Projections back into the residual stream, by the names that model families use; zeroed, a layer is the identity.
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
MLP_OUT = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "out_proj")


def copy_layer(layer: nn.Module, slot: int, model: PreTrainedModel, config: ControlConfig) -> nn.Module:
    """A trainable copy of a decoder layer, with its cache slot set.

    The copy shares the model's config objects, else a change of the attention implementation would not reach it. The
    classes that the model records outputs of become plain modules in the copy, so that hidden states, attentions and
    router logits are not recorded twice and gradient checkpointing does not nest.
    """
    keep: list[Any] = [model.config, model.config.get_text_config(decoder=True)]
    keep += layer.parameters() if config.expanded == "lora" else []
    recorded = recorded_classes(model)
    twin = copy.deepcopy(layer, {id(obj): obj for obj in keep})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = slot  # type: ignore[assignment]
    twin.__dict__.pop("gradient_checkpointing", None)
    for module in twin.modules():
        if module is twin or isinstance(module, recorded):
            module.__class__ = plain_class(type(module))  # type: ignore[arg-type]
    if config.expanded == "lora":
        return add_lora(twin, config.lora_rank)
    return twin.requires_grad_(True)


def recorded_classes(model: PreTrainedModel) -> tuple[type[nn.Module], ...]:
    """The classes whose outputs transformers records by isinstance (`_can_record_outputs`)."""
    found: list[Any] = []
    for module in model.modules():
        for spec in (getattr(type(module), "_can_record_outputs", None) or {}).values():
            specs = spec if isinstance(spec, list) else [spec]
            found += [getattr(one, "target_class", one) for one in specs]
    return tuple({cls for cls in found if isinstance(cls, type)})


def add_lora(twin: nn.Module, rank: int) -> nn.Module:
    """Low-rank copy: W + B A / 1 over the pretrained layer's own frozen weights; B = 0, so the branches start equal."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("expanded='lora' needs the package peft: pip install peft") from None
    linears = sorted({name for name, m in twin.named_modules() if isinstance(m, nn.Linear)})
    if not linears:
        raise ConfigError(f"expanded='lora' adapts nn.Linear modules, but {type(twin).__name__} has none: take 'full'")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linears), twin)
    return twin


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a copy's module was made a plain twin of; its own class where it was not."""
    return getattr(type(module), "plain_twin_of", type(module))


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
    return type(f"{cls.__name__}Copy", (nn.Module,), {**members, "plain_twin_of": cls})


def zero_outputs(layer: nn.Module) -> None:
    """Zero what a layer writes into the residual stream, so that it is the identity (LLaMA Pro, arXiv 2401.02415)."""
    attention = [p for m in layer.modules() if is_attention(m) for p in _projections(m, ATTENTION_OUT)]
    inside = {id(m) for a in layer.modules() if is_attention(a) for m in a.modules()}
    mlp = [p for m in layer.modules() if id(m) not in inside for p in _projections(m, MLP_OUT, skip=inside)]
    if not attention or not mlp:
        missing = "attention output" if not attention else "MLP down"
        raise ConfigError(
            f"structure 'stack' zeroes a layer's output projections, but {type(layer).__name__} has no {missing} "
            "projection under a known name (see ctrl.copies.ATTENTION_OUT, MLP_OUT); use structure='concat'"
        )
    with torch.no_grad():
        for parameter in [*attention, *mlp]:
            parameter.zero_()


class RelaxedNorm(nn.Module):
    """Mixin in front of a norm's class: c x + (1 - c) norm(x), c constant or the layer's own alpha."""

    norm_mix: float | None

    def forward(self, x: Tensor) -> Tensor:
        c: Any = self.norm_mix
        if c is None:
            c = torch.sigmoid(self.__dict__["norm_alpha"].theta).to(x.dtype)
        return c * x + (1 - c) * super().forward(x)


def relax_norms(twin: nn.Module, mix: float | str, interpolation: Interpolation | None) -> None:
    """Turn the copy's own norms (not those inside attention) into relaxed ones."""
    if mix == 0.0:
        return
    if mix == "alpha" and interpolation is None:
        raise ConfigError(
            "norm_mix='alpha' takes the layer's alpha, which a stacked layer does not have: give a number"
        )
    for norm in twin.children():
        if "norm" in type(norm).__name__.lower():
            norm.__class__ = _relaxed_class(type(norm))  # type: ignore[arg-type]
            norm.norm_mix = None if mix == "alpha" else float(mix)  # type: ignore[assignment]
            norm.__dict__["norm_alpha"] = interpolation if mix == "alpha" else None  # shared, not a child


@functools.cache
def _relaxed_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Relaxed{cls.__name__}", (RelaxedNorm, cls), {})


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


def _checkpoints(forward: Any) -> bool:
    return getattr(forward, "__code__", None) is not None and forward.__code__.co_name == "forward_with_checkpointing"

"""Make the trainable copy of a decoder layer: own cache slot, full-rank or low-rank, plain or relaxed norms."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ctrl.classes import made_once
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError, warn
from ctrl.indices import indexed
from ctrl.numerics import above_zero, lerp, wide_dtype
from ctrl.precision import keep_in_fp32, widen_adapters
from ctrl.quantised import plain_linears, shared_state
from ctrl.structure import is_attention

# Projections into the residual stream, by the names that model families use. A layer with zeros there is the identity.
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
MLP_OUT = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "wo", "out_proj")
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")  # model types of `takes_lora`, as PEFT has them


def copy_layer(layer: nn.Module, slot: int, model: PreTrainedModel, config: ControlConfig) -> nn.Module:
    """Copy a decoder layer, make the copy trainable and set its cache slot.

    The copy shares the model's config objects, so that a change of the attention implementation reaches it. Classes
    whose outputs the model records become plain modules in the copy (`plain_class`): hidden states, attentions and
    router logits would be recorded twice otherwise, and gradient checkpointing would nest.
    """
    keep: list[Any] = [model.config, model.config.get_text_config(decoder=True)]
    keep += [*layer.parameters(), *shared_state(layer)] if config.expanded == "lora" else []
    recorded = recorded_classes(model)
    floats = plain_linears(layer) if config.expanded == "full" else {}
    copied = copy.deepcopy(layer, {**{id(obj): obj for obj in keep}, **floats})
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for part in indexed(copied):
        part.layer_idx = slot
    copied.__dict__.pop("gradient_checkpointing", None)
    for module in copied.modules():
        if module is copied or isinstance(module, recorded):
            module.__class__ = plain_class(type(module))
    if config.expanded == "lora":
        add_lora(copied, config.lora_rank)
        if config.copies_dtype == "fp32":
            widen_adapters(copied)
        return copied
    copied.requires_grad_(True)
    return keep_in_fp32(copied) if config.copies_dtype == "fp32" else copied


def recorded_classes(model: PreTrainedModel) -> tuple[type[nn.Module], ...]:
    """List the classes whose outputs transformers records by isinstance (`_can_record_outputs`)."""
    found: list[Any] = []
    for module in model.modules():
        for spec in (getattr(type(module), "_can_record_outputs", None) or {}).values():
            specs = spec if isinstance(spec, list) else [spec]
            found += [getattr(one, "target_class", one) for one in specs]
    return tuple({cls for cls in found if isinstance(cls, type)})


def add_lora(copied: nn.Module, rank: int) -> None:
    """Put low-rank adapters on a copy that shares the frozen pretrained weights: W + B A, with B = 0 at the start.

    Raises ConfigError if peft is missing or nothing can be adapted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("expanded='lora' needs the package peft: pip install peft") from None
    linears = {name: m for name, m in copied.named_modules() if _is_linear(m) and takes_lora(copied, name)}
    if not linears:
        cls = original_class(copied).__name__
        raise ConfigError(f"expanded='lora' adapts nn.Linear and Conv1D modules, but {cls} has none: use 'full'")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(linears),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in linears.values()),  # Conv1D holds its weight transposed
    )
    inject_adapter_in_model(config, copied)


def takes_lora(module: nn.Module, name: str) -> bool:
    """Whether PEFT puts low-rank adapters on the linear layer of this name: Mamba's kernels read the last one's weight.

    module: a model or a layer, with its `config`.
    """
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return not (kind in MAMBA and name.rpartition(".")[2] == "out_proj")


def warn_of_frozen_matrices(copies: Iterable[nn.Module]) -> None:
    """Warn of matrices that no adapter trains, once for all low-rank copies that have the same ones."""
    found = dict.fromkeys((original_class(copied).__name__, _frozen_matrices(copied)) for copied in copies)
    for cls, names in ((cls, names) for cls, names in found if names):
        warn(
            f"expanded='lora' adapts nn.Linear and Conv1D modules only (of Mamba not out_proj, which PEFT refuses); "
            f"these weights of {cls} stay as pretrained: {', '.join(names)}. expanded='full' trains them",
            stacklevel=3,
        )


def _frozen_matrices(copied: nn.Module) -> tuple[str, ...]:
    matrices = [(name, p) for name, p in copied.named_parameters() if p.dim() > 1 and not p.requires_grad]
    return tuple(name for name, _ in matrices if ".base_layer." not in name)


def _is_linear(module: nn.Module) -> bool:
    """Return whether an adapter can be put on the module. Routers are matrices too, but return more than a product."""
    return isinstance(module, nn.Linear | Conv1D) and not hasattr(type(module), "plain_copy_of")


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of the module before `plain_class` replaced it; its present class if nothing did."""
    return getattr(type(module), "plain_copy_of", type(module))


def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Make a class that behaves like cls, but of whose bases only torch's own are the same: isinstance does not match.

    The bases are made anew in the same way. Methods that call `super()` get the new class to start from. It is made
    once, and again after a member of cls or of a base was replaced.
    """
    made: Any = _plain_class(cls)
    plain = (one for one in made.__mro__ if hasattr(one, "plain_members"))
    if any(one.plain_members != vars(one.plain_copy_of) for one in plain):
        _plain_class.cache_clear()  # type: ignore[attr-defined]
    return _plain_class(cls)


@made_once
def _plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    bases = tuple(map(_plain_base, cls.__bases__))
    members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    if (forward := members.get("forward")) is not None and _checkpoints(forward):
        members["forward"] = forward.__wrapped__
    cell = types.CellType()
    members = {name: _with_class(member, cell) for name, member in members.items()}
    members |= {"plain_copy_of": cls, "plain_members": dict(vars(cls))}
    cell.cell_contents = made = type(f"{cls.__name__}Copy", bases, members)
    return made


def _plain_base(base: type) -> type:
    if base.__name__ == "GradientCheckpointingLayer":
        return nn.Module
    own = issubclass(base, nn.Module) and not base.__module__.startswith("torch.")
    return _plain_class(base) if own else base


def _with_class(member: Any, cell: types.CellType) -> Any:
    """Return a function whose `super()` starts from the class in the cell; anything else as it is."""
    if not isinstance(member, types.FunctionType) or "__class__" not in member.__code__.co_freevars:
        return member
    names, cells = member.__code__.co_freevars, member.__closure__ or ()
    closure = tuple(cell if name == "__class__" else old for name, old in zip(names, cells, strict=True))
    made = types.FunctionType(member.__code__, member.__globals__, member.__name__, member.__defaults__, closure)
    made.__kwdefaults__ = member.__kwdefaults__
    return functools.update_wrapper(made, member)


def zero_outputs(layer: nn.Module) -> None:
    """Make a layer the identity: zero its projections into the residual stream (LLaMA Pro, arXiv 2401.02415).

    Raises ConfigError if the attention or the MLP has no projection under a known name.
    """
    attention, mlp = output_projections(layer)
    if not attention or not mlp:
        name, missing = original_class(layer).__name__, "attention output" if not attention else "MLP down"
        raise ConfigError(
            f"structure 'stack' zeroes a layer's output projections, but {name} has no {missing} "
            "projection with a known name (see ctrl.copies.ATTENTION_OUT, MLP_OUT): use structure='concat'"
        )
    with torch.no_grad():
        for parameter in [*attention, *mlp]:
            parameter.zero_()


def output_projections(layer: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """List the weights and biases of a layer's projections into the residual stream: of its attention, of its MLP."""
    attention = [p for m in layer.modules() if is_attention(m) for p in _projections(m, ATTENTION_OUT)]
    inside = {id(m) for a in layer.modules() if is_attention(a) for m in a.modules()}
    mlp = [p for m in layer.modules() if id(m) not in inside for p in _projections(m, MLP_OUT, skip=inside)]
    return attention, mlp


class RelaxedNorm(nn.Module):
    """Mixin in front of a norm's class: c x + (1 - c) norm(x).

    c is norm_mix or, if that is None, learned: clamp(2 sigmoid(f) - 1, 0, 1) of the norm's own interpolation_factor f
    (1,), as in published checkpoints. f starts at 0, so c does too.
    """

    norm_mix: float | None
    interpolation_factor: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_mix is None:
            c = above_zero(2 * torch.sigmoid(self.interpolation_factor.float()) - 1)
        else:
            c = x.new_full((), self.norm_mix, dtype=wide_dtype(x))
        return lerp(super().forward(x), x, c)


def relax_norms(copied: nn.Module, mix: float | str) -> None:
    """Replace the norms of a parallel copy by relaxed ones, except those inside its attention, MLP or other parts.

    Raises ConfigError if there are none, and for a norm whose instance has a forward of its own.
    """
    if mix == 0.0:
        return
    trained = next((p for p in copied.parameters() if p.requires_grad), torch.zeros(()))
    named: list[Any] = [child for child in copied.children() if "norm" in type(child).__name__.lower()]
    norms = [child for child in named if not any(map(is_attention, child.modules()))]  # DBRX names a block after both
    if not norms:
        raise ConfigError(
            f"norm_mix={mix!r}: {original_class(copied).__name__} has no norm of its own to relax, all are inside of "
            "its attention, MLP or outputs: set norm_mix=0"
        )
    for norm in norms:
        if "forward" in vars(norm):
            raise ConfigError(
                f"norm_mix={mix!r}: a {type(norm).__name__} has a forward of its own (Liger and hub kernels set "
                "one), which would hide that of the relaxed norm: expand the model first, then apply the kernels"
            )
        norm.__class__ = _relaxed_class(type(norm))
        norm.norm_mix = None if mix == "learned" else float(mix)
        if mix == "learned":
            norm.interpolation_factor = nn.Parameter(trained.new_zeros(1))


@made_once
def _relaxed_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Relaxed{cls.__name__}", (RelaxedNorm, cls), {})


def _projections(module: nn.Module, names: Sequence[str], skip: set[int] | None = None) -> list[nn.Parameter]:
    """List the weights and biases directly in the module that have one of the names, and those of such children.

    Experts hold bare parameters; in GPT-OSS the bias of `down_proj` is a parameter `down_proj_bias`.
    """
    found: list[nn.Parameter] = []
    for name in (*names, *(f"{name}_bias" for name in names)):
        child = getattr(module, name, None)
        if isinstance(child, nn.Parameter):
            found.append(child)
        elif isinstance(child, nn.Module) and id(child) not in (skip or set()):
            found.extend(child.parameters(recurse=False))
    return found


def _checkpoints(forward: Any) -> bool:
    return getattr(forward, "__code__", None) is not None and forward.__code__.co_name == "forward_with_checkpointing"

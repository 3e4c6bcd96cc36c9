"""Turn a causal LM into a Control LLM in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.adapters import peft_adapter
from ctrl.attention_rows import check_attention
from ctrl.changes import remember_base
from ctrl.config import ControlConfig, compares_hidden, without_effect
from ctrl.control import Control
from ctrl.control_model import ControlModel
from ctrl.copies import copy_layer, relax_norms, warn_of_frozen_matrices, zero_outputs
from ctrl.errors import ConfigError, warn
from ctrl.expansion import Expansion, Part, put_on
from ctrl.interpolation import Interpolation, build_interpolation
from ctrl.patches import refuse_patches
from ctrl.probe import probe
from ctrl.quantised import refuse_repacked
from ctrl.structure import branch_kinds, check_layers, decoder_layers, place, refuse_computed_weights


def expand(model: PreTrainedModel, config: ControlConfig | None = None) -> PreTrainedModel:
    """Expand a causal LM in place and return it: add trainable copies of layers, freeze everything else.

    Before training the logits equal the base model's, unless a constant norm_mix changes norms. Raises ConfigError for
    a model or layers that cannot be expanded, and then leaves the model unchanged. Warns of settings that have no
    effect. Part of this is seen in a pass of few tokens (`ctrl.probe`), which a model on device meta and a sharded one
    do not get. Parameters of a copy that get no gradient there, such as cross-attention and the biases that a router
    moves itself, stay frozen. The head of a classifier or reward model, which starts at random, trains too and is saved
    with the copies.

    What is added is fp32 in every model, since small steps are lost in half types (see `copies_dtype`); over a base in
    bf16 or fp16 the copies compute in its type. A new head, and what you unfreeze, keeps the base's. A later
    `model.half()`, `model.bfloat16()` or `model.to(dtype)` rounds all of it, gates too: choose the type before. If the
    base has dropout, each branch draws a mask of its own in training, so that they differ by it from the start: set the
    config's dropout to 0.

    FSDP needs one dtype for all that trains in a shard. With copies_dtype='base' shard the interpolations of a
    half-precision model separately, before their layers:

        for layer in ctrl.layer.expanded_layers(model):
            if layer.interpolation is not None:
                fully_shard(layer.interpolation, reshard_after_forward=False)
    """
    config = ControlConfig() if config is None else config
    _check_arguments(model, config)
    for fault in without_effect(config):
        warn(f"ControlConfig: {fault}", stacklevel=2)
    layers = decoder_layers(model)
    indices = place(config.layers, len(layers))
    check_layers(layers, indices)
    refuse_computed_weights((layers[index] for index in indices), "expand")
    if config.divergence == "attention":
        check_attention(model.config)
    refuse_patches(model, layers, indices)
    refuse_repacked(model)
    _warn_of_hooks(layers, indices)
    _warn_of_routers(model)
    kinds = branch_kinds(config, len(indices))
    with _unchanged_if_refused(model), torch.inference_mode(False):  # made in it, no copy could ever train
        with torch.device("cpu"):  # and not on the default device of a block around; parts move to their layers
            copies = [
                _copy(layers[index], kind, len(layers) + j, model, config)
                for j, (index, kind) in enumerate(zip(indices, kinds, strict=True))
            ]
        if config.expanded == "lora":
            warn_of_frozen_matrices(copies)
        expansions = list(zip(indices, kinds, copies, strict=True))
        stacked = {index for index, kind in zip(indices, kinds, strict=True) if kind == "stack"}
        shape = probe(model, layers, dict(zip(indices, copies, strict=True)), stacked)
        with torch.device("cpu"):
            parts = [
                Part(index, kind, copied, _interpolation(kind, copied, shape.hidden, config))
                for index, kind, copied in expansions
            ]
        control = Control(config, indices, len(layers), batch_dim=shape.batch_dim)
        remember_base(control, model)
        put_on(model, Expansion(control, parts))
    return model


def _check_arguments(model: Any, config: Any) -> None:
    """Raise ConfigError for another object than a plain model of transformers, or than a config."""
    if not isinstance(config, ControlConfig):
        raise ConfigError(
            f"config must be a ctrl.ControlConfig, but got {config!r}: ControlConfig.from_dict reads a dict"
        )
    if isinstance(model, ControlModel):
        raise ConfigError(
            "the model is expanded already: call ctrl.unload, ctrl.swap or ctrl.merge_back first, or take a new base"
        )
    if isinstance(model, nn.Module) and (adapter := peft_adapter(model)) is not None:
        raise ConfigError(
            f"{adapter} holds a PEFT adapter, which would train in place of the copy's own weights: call "
            "merge_and_unload() and expand the result, or expand the base model first and get_peft_model after it"
        )
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"expand needs a model of transformers, but got {type(model).__name__}: load it first, and expand it "
            "before torch.compile or any other wrapper"
        )


@contextlib.contextmanager
def _unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """Make parameters trainable again if copying fails: low-rank copies share and freeze those of their layer."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        yield
    except Exception:
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise


def _copy(layer: nn.Module, kind: str, slot: int, model: PreTrainedModel, config: ControlConfig) -> nn.Module:
    copied = copy_layer(layer, slot, model, config)
    if kind == "stack":
        zero_outputs(copied)
    return copied


def _interpolation(kind: str, copied: nn.Module, hidden: int, config: ControlConfig) -> Interpolation | None:
    """Relax the norms of a parallel copy and build its interpolation; None for a stacked copy."""
    if kind == "stack":
        return None
    relax_norms(copied, config.norm_mix)
    interpolation = build_interpolation(config.interpolation, hidden, config.alpha_start, config.alpha == "learned")
    if not compares_hidden(config):
        for name in interpolation.trained_by_divergence:
            interpolation.get_parameter(name).requires_grad_(False)
    return interpolation


def _warn_of_hooks(layers: nn.ModuleList, indices: list[int]) -> None:
    """Warn of hooks inside the layers (steering, norms of weights), which the copies do not get.

    Those that transformers has installed record outputs. Hooks of a layer as a whole run around both branches.
    """
    inside = {f"layer {index}, {name}": module for index in indices for name, module in layers[index].named_modules()}
    hooks = {place: [*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for place, m in inside.items()}
    own = [place for place, found in hooks.items() if not place.endswith(", ") and not all(map(_records, found))]
    if own:
        warn(
            f"{len(own)} modules of the expanded layers have hooks that copies do not get (first: {own[0]}): if these "
            "change what a module returns, the copies do not start as the base. Register them after expand, on both",
            stacklevel=3,
        )


def _warn_of_routers(model: PreTrainedModel) -> None:
    """Warn that a loss of routers, which transformers adds if they are recorded, leaves the copies' routers out."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        warn(
            "output_router_logits=True adds the balance of the frozen layers' routers to the loss, which leaves out "
            "those of the copies, the only ones that train: set config.output_router_logits=False, or watch which "
            "experts the copies use",
            stacklevel=3,
        )


def _records(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")

"""Turn an expanded model into a plain model of its base class that its config can rebuild.

Stacked copies become layers, so the indices of the layers after them grow. Some classes read a layer's index when they
are built (which MLP, which constant) and would come back from `from_pretrained` as another model: these are refused.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ctrl.control_model import ControlModel
from ctrl.copies import original_class
from ctrl.errors import ConfigError
from ctrl.expansion import become
from ctrl.generation import config_of
from ctrl.indices import indexed, refuse_counted_layers
from ctrl.layer import class_before, expanded_layers
from ctrl.model import expand
from ctrl.offloaded import in_memory, is_offloaded
from ctrl.sharded import is_sharded, whole
from ctrl.structure import decoder_layers, give_own_head, says_another_head, select_layers

CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")  # attributes of a layer
RECORDING = "transformers.utils.output_capturing"  # the module of hooks that record outputs


def whole_model(model: Any) -> Any:
    """Return the model itself or, if it is sharded or offloaded, a full copy in host memory.

    If it is sharded, every process must call this.
    """
    state = model.state_dict()
    if not is_offloaded(model) and not any(is_sharded(tensor) for tensor in state.values()):
        return model
    state = in_memory(model, state | dict(model.named_buffers()))  # RoPE's frequencies are not in the state dict
    cls: Any = class_before(model, ControlModel)
    gathered = cls._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    expand(gathered, dataclasses.replace(model.control.config, layers=model.control.layers))
    if _heads_apart(gathered, state):
        give_own_head(gathered)
    for name, own in (gathered.state_dict(keep_vars=True) | dict(gathered.named_buffers())).items():
        own.data = whole(state[name]).cpu()
    for layer, original in zip(expanded_layers(gathered), expanded_layers(model), strict=True):
        if layer.interpolation is not None and original.interpolation is not None:
            layer.interpolation.fixed_alpha = original.interpolation.fixed_alpha
    if hasattr(model, "generation_config"):  # a classifier has none
        gathered.generation_config = copy.deepcopy(config_of(model))
    return gathered.train(model.training)


def _heads_apart(gathered: Any, state: dict[str, torch.Tensor]) -> bool:
    """Whether a state has two tensors for embeddings and head, which are one in the model."""
    named = gathered.named_parameters(remove_duplicate=False)
    names = [name for name, p in named if p is gathered.get_input_embeddings().weight]
    return any(not torch.equal(whole(state[names[0]]), whole(state[name])) for name in names[1:] if name in state)


def note_own_head(model: Any) -> None:
    """Let the config of a plain model say that its head is not its embeddings, which servers believe."""
    if says_another_head(model):
        _own_config(model)
        give_own_head(model)


def source_layers(model: Any) -> list[int]:
    """List the base-layer index of every layer of the plain model; a stacked copy has the index of its original."""
    stacked = {layer.index for layer in expanded_layers(model) if layer.kind == "stack"}
    return [index for index in range(model.control.total) for _ in range(2 if index in stacked else 1)]


def insert(model: PreTrainedModel, stacked: dict[int, nn.Module], sources: list[int]) -> None:
    """Insert stacked copies (index of the original -> copy) after their originals, and count them in the config.

    Copies get the dtypes of their originals. sources: see `source_layers`.
    """
    if not stacked:
        return
    layers = decoder_layers(model)
    grown = []
    for index, layer in enumerate(layers):
        grown.append(layer)
        if index in stacked:
            grown.append(_as_original(stacked[index], layer))
    for slot, layer in enumerate(grown):
        for part in indexed(layer):
            part.layer_idx = slot
    for slot in range(len(layers)):
        layers[slot] = grown[slot]
    layers.extend(grown[len(layers) :])
    _own_config(model)
    select_layers(model.config.get_text_config(decoder=True), sources)
    _record_anew(model)


def _own_config(model: Any) -> None:
    """Give the model and its modules a copy of the config, which other models may share: they keep their depth."""
    copied: dict[int, Any] = {}  # id of each object inside the config -> its copy
    copy.deepcopy(model.config, copied)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, PreTrainedConfig) and id(value) in copied:
                setattr(module, name, copied[id(value)])


def _record_anew(model: nn.Module) -> None:
    """Remove the hooks that record hidden states, attentions and router logits, which the inserted layers lack.

    transformers sets them once, in a pass that needs them (the probe's, for a router), and then sets them again.
    """
    for module in model.modules():
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "__module__", "") == RECORDING]:
            del hooks[key]
        vars(module).pop("_output_capturing_hooks_installed", None)


def check_rebuilds(model: Any, sources: list[int]) -> None:
    """Raise ConfigError if the deeper config would build a layer other than its source.

    Builds a model from both configs on the meta device, without weights, and compares classes, shapes and constants of
    their layers. sources: see `source_layers`.
    """
    if len(sources) == model.control.total:
        return
    refuse_counted_layers(model)
    deeper = copy.deepcopy(model.config)
    select_layers(deeper.get_text_config(decoder=True), sources)
    cls = class_before(model, ControlModel)
    try:
        with torch.device("meta"):
            here, there = (decoder_layers(cls(config)) for config in (copy.deepcopy(model.config), deeper))
    except Exception as error:
        raise ConfigError(
            f"{cls.__name__} cannot be built with the stacked copies inserted ({error}): keep it expanded (ctrl.save), "
            "or expand with structure='concat'"
        ) from error
    for slot, source in enumerate(sources):
        old, new = _traits(here[source]), _traits(there[slot])
        wrong = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if wrong:
            raise ConfigError(
                f"{cls.__name__} builds its layers by their index: with the stacked copies inserted, layer {source} "
                f"becomes layer {slot}, where the config gives {wrong[0]}={new.get(wrong[0])} instead of "
                f"{old.get(wrong[0])}, so the saved model would load as another one. Keep it expanded (ctrl.save), or "
                "expand with structure='concat'"
            )


def _traits(layer: nn.Module) -> dict[str, Any]:
    """Collect what building a layer has decided: classes, constants (except the index) and shapes of its modules."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        found[f"{path} (class)"] = type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, bool | int | float | str | list | tuple | None) and name != "layer_idx":
                found[f"{path}.{name}"] = value
        for name, parameter in module.named_parameters(recurse=False):
            found[f"{path}.{name}"] = tuple(parameter.shape)
    return found


def _as_original(copied: nn.Module, layer: nn.Module) -> nn.Module:
    """Give a copy the classes and dtypes of its original."""
    for module in copied.modules():
        if (original := original_class(module)) is not type(module):
            become(module, original)
    originals = dict(layer.named_parameters())
    for name, parameter in copied.named_parameters():
        parameter.data = parameter.data.to(originals[name].dtype)
    vars(copied).update({name: value for name, value in vars(layer).items() if name in CHECKPOINTING})
    return copied

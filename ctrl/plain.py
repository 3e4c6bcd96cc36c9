"""Take an expanded model apart: what is left is a plain model of its base class, which its config rebuilds.

Stacked copies become layers of their own, so the layers behind them move up. Classes that read a layer's index while
they are built (which MLP, which constant) would come back from `from_pretrained` as another model: those are refused.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.control_model import IGNORED, ControlModel
from ctrl.copies import original_class
from ctrl.errors import ConfigError
from ctrl.layer import ADDED, ExpandedLayer, class_before, expanded_layers
from ctrl.model import expand
from ctrl.sharded import is_sharded, whole
from ctrl.structure import decoder_layers, select_layers


def whole_model(model: Any) -> Any:
    """The expanded model itself; of a sharded one a whole copy in host memory, made by every process."""
    state = model.state_dict()
    if not any(is_sharded(tensor) for tensor in state.values()):
        return model
    cls: Any = class_before(model, ControlModel)
    gathered = cls._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    expand(gathered, dataclasses.replace(model.control.config, layers=model.control.layers))
    for name, own in gathered.state_dict(keep_vars=True).items():
        own.data = whole(state[name]).cpu()
    for name, buffer in model.named_buffers():
        gathered.get_buffer(name).data = whole(buffer).cpu()  # RoPE's frequencies are in no state
    for layer, original in zip(expanded_layers(gathered), expanded_layers(model), strict=True):
        if layer.interpolation is not None and original.interpolation is not None:
            layer.interpolation.fixed_alpha = original.interpolation.fixed_alpha
    return gathered.train(model.training)


def strip(model: Any) -> None:
    """Take away all that expand added, in place: the model is of its base class again, without its copies."""
    for layer in expanded_layers(model):
        for handle in layer.__dict__.pop("attention_handles", ()):
            handle.remove()
        for name in (*(part.rstrip(".") for part in ADDED), "control", "index", "kind"):
            delattr(layer, name)
        layer.__class__ = class_before(layer, ExpandedLayer)
    model.config.__dict__.pop(IGNORED, None)
    del model.control
    model.__class__ = class_before(model, ControlModel)


def source_layers(model: Any) -> list[int]:
    """Base-layer index of every layer of the merged model; a stacked copy has the index of its original."""
    stacked = {layer.index for layer in expanded_layers(model) if layer.kind == "stack"}
    return [index for index in range(model.control.total) for _ in range(2 if index in stacked else 1)]


def insert(model: PreTrainedModel, stacked: dict[int, nn.Module], sources: list[int]) -> None:
    """Put stacked copies behind their originals, in the originals' dtypes, and make the config count them."""
    if not stacked:
        return
    layers = decoder_layers(model)
    grown = []
    for index, layer in enumerate(layers):
        grown.append(layer)
        if index in stacked:
            grown.append(_as_original(stacked[index], layer))
    for slot, layer in enumerate(grown):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = slot  # type: ignore[assignment]
    for slot in range(len(layers)):
        layers[slot] = grown[slot]
    layers.extend(grown[len(layers) :])
    select_layers(model.config.get_text_config(decoder=True), sources)


def check_rebuilds(model: Any, sources: list[int]) -> None:
    """Raise ConfigError unless the deeper config builds, at each slot, the layer that its source is.

    Both configs are built without weights (on the meta device) and their layers compared: classes, shapes, constants.
    """
    if len(sources) == model.control.total:
        return
    deeper = copy.deepcopy(model.config)
    select_layers(deeper.get_text_config(decoder=True), sources)
    cls = class_before(model, ControlModel)
    with torch.device("meta"):
        here, there = (decoder_layers(cls(config)) for config in (copy.deepcopy(model.config), deeper))
    for slot, source in enumerate(sources):
        old, new = _traits(here[source]), _traits(there[slot])
        wrong = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if wrong:
            raise ConfigError(
                f"{cls.__name__} builds its layers by their index: with the stacked copies in place, layer {source} "
                f"becomes layer {slot}, where the config gives {wrong[0]}={new.get(wrong[0])} in place of "
                f"{old.get(wrong[0])}, so the saved model would load as another one. Keep it expanded (ctrl.save), or "
                "expand with structure='concat'"
            )


def _traits(layer: nn.Module) -> dict[str, Any]:
    """What building a layer has decided: each module's class, constants (less its index) and parameter shapes."""
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
    """A copy with its original's classes and dtypes."""
    for module in copied.modules():
        module.__class__ = original_class(module)
    originals = dict(layer.named_parameters())
    for name, parameter in copied.named_parameters():
        parameter.data = parameter.data.to(originals[name].dtype)
    return copied

"""Put the parts of an expansion on a model, and take them off: the model is then its base class again."""

from __future__ import annotations

import copy
import importlib
import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.attention_rows import keep_rows
from ctrl.control import Control
from ctrl.control_model import ControlModel, control_class
from ctrl.errors import ConfigError
from ctrl.facts import base_as_it_runs
from ctrl.generation import to_base, to_expansion
from ctrl.interpolation import Interpolation
from ctrl.layer import ADDED, ExpandedLayer, class_before, expanded_class, expanded_layers
from ctrl.optimizers import remember_taken_off
from ctrl.outputs import heed_fields, ignore_fields
from ctrl.patches import FORWARDS
from ctrl.quantised import keep_as_in_training
from ctrl.structure import decoder_layers, head_parameters, is_attention, refuse_computed_weights


@dataclass(eq=False)
class Part:
    """The copy of one layer. index: of the layer. kind, interpolation: as in `ctrl.layer.ExpandedLayer`."""

    index: int
    kind: str
    expanded: nn.Module
    interpolation: Interpolation | None


@dataclass(eq=False)
class Expansion:
    """All that an expanded model has and its base has not: the trained parts, with their settings.

    head: values of the head that trained with them, see `ctrl.structure.head_parameters`. unfrozen: parameters of the
    base that train; None if it was never on a model. facts: `ctrl.facts.base_as_it_runs` of the base that it was on.
    """

    control: Control
    parts: list[Part] = field(repr=False)
    head: dict[str, Tensor] = field(default_factory=dict, repr=False)
    unfrozen: frozenset[str] | None = field(default=None, repr=False)
    facts: dict[str, Any] | None = field(default=None, repr=False)


def put_on(model: PreTrainedModel, expansion: Expansion) -> None:
    """Freeze a plain model but for a head that is new, and add the parts, on the devices of their layers.

    Raises ConfigError if another model has them: it would share their settings, and train the same copies.
    """
    control = expansion.control
    if control.owner is not None and control.owner() is not None:
        raise ConfigError(
            "another model has this expansion: ctrl.swap or ctrl.unload that one first, or put a copy.deepcopy of the "
            "expansion on this one"
        )
    layers = decoder_layers(model)
    model.requires_grad_(False)
    for name, parameter in head_parameters(model).items():
        parameter.requires_grad_(True)
        if name in expansion.head:
            parameter.data.copy_(expansion.head[name])
    if expansion.unfrozen is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in expansion.unfrozen)
    for part in expansion.parts:
        _add(layers[part.index], part, control)
    for inner in _inner_models(model):
        vars(inner)["save_pretrained"] = refuse_to_save_a_part
    become(model, control_class(type(model)))
    model.control = control  # type: ignore[assignment]
    keep_as_in_training(model)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    control.trained = control.trained or found  # of the first time: parts may have been frozen since
    control.owner = weakref.ref(model)
    control.look_again()  # an optimizer that was made before holds other weights
    control.look_from(next(model.parameters()).device)
    if not control.off:
        to_expansion(model)
    ignore_fields(model.config)


def take_off(model: Any) -> Expansion:
    """Remove in place all that `put_on` added, and return it."""
    parts = []
    for inner in _inner_models(model):
        vars(inner).pop("save_pretrained", None)
    remember_taken_off(model, [p for p in model.parameters() if p.requires_grad])
    for layer in expanded_layers(model):
        parts.append(Part(layer.index, layer.kind, layer.expanded, layer.interpolation))
        for handle in layer.__dict__.pop("attention_handles", ()):
            handle.remove()
        for name in (*(part.rstrip(".") for part in ADDED), "control", "index", "kind"):
            delattr(layer, name)
        become(layer, class_before(layer, ExpandedLayer))
    head = {name: parameter.detach().clone() for name, parameter in head_parameters(model).items()}
    unfrozen = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    to_base(model)
    control: Control = model.control
    control.owner = None
    del model.control
    become(model, class_before(model, ControlModel))
    heed_fields(model.config)
    return Expansion(control, parts, head, unfrozen, base_as_it_runs(model))


def _inner_models(model: nn.Module) -> list[PreTrainedModel]:
    """List the models inside of the model that hold its expanded layers: the decoder, and what is around it."""
    inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    return [one for one in inner if expanded_layers(one)]


def refuse_to_save_a_part(*args: Any, **kwargs: Any) -> None:
    """Raise ConfigError in place of the decoder's own save_pretrained: its folder would load without the copies."""
    raise ConfigError(
        "the decoder alone would be saved with a config of the base, and load without its copies: call save_pretrained "
        "of the whole model, or save a part of the plain model that ctrl.merge_back(model) returns"
    )


def deep_copy(model: Any, shared: dict[int, Any] | None = None) -> Any:
    """Copy an expanded model that is then taken apart. shared: objects that both have, by id.

    Raises ConfigError for weights that are computed in each pass.
    """
    refuse_computed_weights([model], "ctrl")
    return copy.deepcopy(model, {**(shared or {}), id(model.control): model.control.copied()})


def become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Give the module another class, and drop the forward that a trainer has set on the instance.

    accelerate's autocast and TRL's fused head set one, which runs the forward of the class, or of the model, before.
    Hooks of accelerate that move tensors between devices stay, now around the forward of the new class.
    """
    module.__class__ = cls
    for name in FORWARDS:
        vars(module).pop(name, None)
    if (hook := vars(module).get("_hf_hook")) is not None:
        importlib.import_module("accelerate.hooks").add_hook_to_module(module, hook)


def _join(layer: nn.Module, copied: nn.Module, low_rank: bool) -> None:
    """Give a copy the config of its layer, and if it is low-rank the weights: it may come from another base.

    With a config of its own a copy would compute attention in another way than the model makes its masks for: eager
    attention reads a mask that is left out for sdpa as none at all, and sees the tokens to come.
    """
    originals = dict(layer.named_modules())
    for name, module in copied.named_modules():
        original = originals.get(name.replace(".base_layer", ""))
        if original is None:
            continue
        if "config" in vars(module) and "config" in vars(original):
            module.config = original.config
        if low_rank:
            module._parameters.update({k: p for k, p in original._parameters.items() if k in module._parameters})


def _add(layer: Any, part: Part, control: Control) -> None:
    _join(layer, part.expanded, control.config.expanded == "lora")
    device = next(layer.parameters()).device
    for module in filter(None, (part.expanded, part.interpolation)):
        module.train(layer.training)
        if next(module.parameters()).device != device:
            module.to(device)
    become(layer, expanded_class(type(layer)))
    layer.expanded, layer.interpolation = part.expanded, part.interpolation
    layer.control, layer.index, layer.kind = control, part.index, part.kind
    if control.config.divergence == "attention" and part.kind == "concat":
        attentions = [module for module in layer.modules() if is_attention(module)]
        layer.attention_handles = [module.register_forward_hook(keep_rows) for module in attentions]

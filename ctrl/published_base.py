"""Build the model, still without its weights, that a published checkpoint was expanded from."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ctrl.computes import computes, differences
from ctrl.config import ControlConfig
from ctrl.errors import CheckpointError, warn
from ctrl.facts import buffer_types, rounded_buffers
from ctrl.precision import HALF
from ctrl.published_names import LayerMap, layer_index, layout_of
from ctrl.structure import select_layers

GENERATION_FILE = "generation_config.json"
NOT_OF_BASE = ("expansion", "architectures", "model_type")  # fields of a checkpoint's config.json


def skeleton(
    values: dict[str, Any], base: Any, layer_map: LayerMap, dtype: torch.dtype, eager: bool
) -> PreTrainedModel:
    """Build a model of the base architecture with random weights."""
    source = base if base is not None else values["expansion"].get("expanded_from")
    if isinstance(source, PreTrainedModel):
        config = type(source.config).from_dict(source.config.to_dict())
    elif base is not None or (source and isinstance(source, str) and Path(source).is_dir()):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)  # else a terminal would be asked
    else:
        source, config = None, _config_of(values)
    text = config.get_text_config(decoder=True)
    if source is None:
        select_layers(text, layer_map.base_layers)
    elif text.num_hidden_layers != len(layer_map.base_layers):
        name = type(source).__name__ if isinstance(source, PreTrainedModel) else repr(str(source))
        raise CheckpointError(
            f"the base model {name} has {text.num_hidden_layers} layers, but the checkpoint was expanded from "
            f"{len(layer_map.base_layers)}: pass as base the model from which it was expanded"
        )
    else:
        _warn_of_another(config, values, layer_map)
    kwargs: dict[str, Any] = {"trust_remote_code": False} | ({"attn_implementation": "eager"} if eager else {})
    named = (values.get("architectures") or [""])[0]
    own: Any = getattr(transformers, named.removesuffix("Expansion"), None)  # a model of images and text, for one
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(own, "config_class", None) is type(config):
        kwargs.pop("trust_remote_code")
        make: Any = own._from_config
    else:
        make = AutoModelForCausalLM.from_config
    # the dtype is an argument here because .to() would also round RoPE's frequencies
    model: PreTrainedModel = make(config, dtype=dtype, **kwargs)
    return model


def base_dtype(tensors: dict[str, Tensor], config: ControlConfig, layer_map: LayerMap) -> torch.dtype:
    """Return the dtype of most of the base's weights: routers and norms may have another one. Copies have their own."""
    added = tuple(layout_of(config.interpolation).tensors.values())
    own = {n: t for n, t in tensors.items() if not n.endswith(added) and ".expanded_layer." not in n}
    base = [t for n, t in own.items() if all(i in layer_map.base_layers for i in layer_index(n))]
    sizes: Counter[torch.dtype] = Counter()
    for tensor in base:
        sizes[tensor.dtype] += tensor.numel() if tensor.is_floating_point() else 0
    return max(sizes, key=sizes.__getitem__, default=torch.float32) if any(sizes.values()) else torch.float32


@torch.no_grad()
def take_types(model: Any, tensors: dict[str, Tensor], layer_map: LayerMap) -> None:
    """Give the base's weights the types that they have in the checkpoint, as `from_pretrained` of the base would.

    Buffers that no file holds (tables of positions) are made again: in a half type they are built of rounded numbers.
    """
    for name, own in model.state_dict(keep_vars=True).items():
        found = next((tensors[other] for other in _names_there(name, layer_map) if other in tensors), None)
        if found is not None and found.is_floating_point() and own.is_floating_point():
            own.data = own.data.to(found.dtype)
    if model.dtype in HALF:
        _make_buffers(model, model)


def warn_of_rounded_buffers(model: Any, cls: type[PreTrainedModel]) -> None:
    """Warn if the base's buffers are rounded: no file holds them, and who reads an export makes them as they were.

    cls: the base's class.
    """
    if model.dtype in HALF:
        with torch.device("meta"):
            fresh = cls._from_config(copy.deepcopy(model.config), dtype=model.dtype)
        there, here = buffer_types(fresh), buffer_types(model)
    else:
        odd = any(_made_otherwise(model, name) for name in rounded_buffers(model) or ())
        there, here = [str(model.dtype)], [str(model.dtype) + " rounded to a half type" * odd]
    if there != here:
        warn(
            f"the base has RoPE's frequencies, or other buffers, in {', '.join(here)}, and no export can hold them: it "
            f"will be read with {', '.join(there)}, so its outputs are others. model.to(dtype) rounds buffers, "
            "from_pretrained(name, dtype=...) does not: load the trained copies onto such a base (ctrl.save, "
            "ctrl.load), and export that",
            stacklevel=3,
        )


def _made_otherwise(model: Any, name: str) -> bool:
    """Whether the base's class makes a buffer with other values; of a module without weights."""
    path, _, own = name.rpartition(".")
    if any(True for _ in model.get_submodule(path).parameters()):
        return False
    module = copy.deepcopy(model.get_submodule(path))
    _make_buffers(module, model)
    return not torch.equal(module.get_buffer(own), model.get_buffer(name))


def _make_buffers(module: nn.Module, around: Any) -> None:
    """Make the buffers again that no file holds. around: the model of transformers that knows how."""
    around = module if isinstance(module, PreTrainedModel) else around
    if module._non_persistent_buffers_set:
        around._init_weights(module)
    for child in module.children():
        _make_buffers(child, around)


def _names_there(name: str, layer_map: LayerMap) -> list[str]:
    """List the names that a tensor of the base may have in the checkpoint."""
    parts = name.split(".")
    at = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if at is None or int(parts[at]) >= len(layer_map.base_layers):
        return [name]
    before, after = [*parts[:at], str(layer_map.base_layers[int(parts[at])])], parts[at + 1 :]
    return [".".join([*before, *after]), ".".join([*before, "pretrained_layer", *after])]


def _config_of(values: dict[str, Any]) -> PreTrainedConfig:
    """Build the base config from config.json. The published models are Llamas and name no other type."""
    plain = {k: v for k, v in values.items() if k not in NOT_OF_BASE}
    return AutoConfig.for_model(plain.pop("base_model_type", "llama"), **plain)


def _warn_of_another(config: PreTrainedConfig, values: dict[str, Any], layer_map: LayerMap) -> None:
    """Warn if the base's config computes something else than the fields that the checkpoint's config.json has."""
    plain = {k: v for k, v in values.items() if k not in NOT_OF_BASE}
    theirs = type(config).from_dict({**copy.deepcopy(plain), "model_type": config.model_type})
    select_layers(theirs.get_text_config(decoder=True), layer_map.base_layers)
    if different := differences(*(_given(computes(one), plain.keys()) for one in (theirs, config))):
        warn(
            f"the checkpoint and the base have configs that compute different things: {different}. The base's is "
            "used, so the outputs are not those of the model that was published: load it without base, or pass the "
            "base from which it was expanded",
            stacklevel=4,
        )


def _given(facts: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Return those of `computes` that some fields of a config give, the numbers of RoPE by their names.

    Llama 3 and 3.1 differ in these alone. Earlier versions of transformers have them in `rope_scaling`.
    """
    rope = facts.get("rope_parameters")
    if {"rope_scaling", "rope_parameters"}.isdisjoint(fields) or not isinstance(rope, dict):
        return {name: value for name, value in facts.items() if name in fields}
    own = {name: value for name, value in facts.items() if name in fields and not name.startswith("rope_")}
    return own | {f"rope_parameters.{name}": value for name, value in rope.items()}


def read_generation(model: PreTrainedModel, folder: Path, base: Any) -> None:
    """Give the model the settings of generation of its folder, or else of its base: where replies end, for one."""
    if (folder / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    elif hasattr(base, "generation_config"):
        model.generation_config = copy.deepcopy(base.generation_config)
    elif base is not None and not isinstance(base, PreTrainedModel):
        with contextlib.suppress(OSError):  # it has none
            model.generation_config = GenerationConfig.from_pretrained(base)

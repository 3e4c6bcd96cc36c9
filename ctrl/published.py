"""The layout of the published Control LLM checkpoints: read and write it.

Their config.json has an `expansion` object (`ctrl.published_config`); the names of their tensors are in
`ctrl.published_names`.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ctrl.checkpoint import read_tensors
from ctrl.config import ControlConfig
from ctrl.control_model import IGNORED, ControlModel, bare_expanded
from ctrl.errors import CheckpointError
from ctrl.layer import class_before, expanded_layers
from ctrl.model import expand
from ctrl.plain import source_layers
from ctrl.published_config import check_exportable, control_config, expansion_object, warn_of_losses
from ctrl.published_names import (
    LayerMap,
    deeper_indices,
    layer_index,
    layout_of,
    our_value,
    published_names,
    published_value,
)
from ctrl.sharded import write_once
from ctrl.structure import select_layers


def load_published(
    folder: str | os.PathLike[str], base: PreTrainedModel | str | os.PathLike[str] | None = None
) -> PreTrainedModel:
    """An expanded model from a published checkpoint, sharded or not.

    base: the base model's name or folder, or a model; only its architecture is taken, all weights are in the
    checkpoint. Default: `expanded_from`, where that exists on this machine, else the Llama fields of config.json.
    Raises CheckpointError or ConfigError naming what is missing, extra or unknown.
    """
    folder = Path(folder)
    values = _read_json(folder / "config.json")
    expansion = values.get("expansion")
    if not isinstance(expansion, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} has no 'expansion' object: it is no published Control LLM model"
        )
    tensors = _read_all(folder)
    total = 1 + max((i for name in tensors for i in layer_index(name)), default=-1)
    _check_count("num_hidden_layers", values.get("num_hidden_layers"), total, folder)
    layer_map = LayerMap(expansion, total)
    _check_count("num_ori_layers", expansion.get("num_ori_layers"), len(layer_map.base_layers), folder)
    config = control_config(expansion, layer_map.originals)
    model = _skeleton(values, base, layer_map, _dtype(tensors, config), eager=config.divergence == "attention")
    expand(model, config)
    _load_strictly(model, tensors, expansion, folder)
    return model


def export_published(model: nn.Module, folder: str | os.PathLike[str], max_shard_size: str = "5GB") -> Path:
    """Write an expanded model in the published layout.

    What changes the model's outputs and has no place there is refused with a ConfigError. What only matters if it is
    trained further (the layout knows one cosine form, no margin, ...) is left out with a warning that lists it: most
    exports are made to be run. Sharded over processes (FSDP2): as in `ctrl.save`, all of them call it.
    """
    expanded: Any = bare_expanded(model)
    config: ControlConfig = expanded.control.config
    check_exportable(config)
    names = published_names(expanded)
    kinds = {layer.index: layer.kind for layer in expanded_layers(expanded)}
    deeper, (_, unfrozen) = copy.deepcopy(expanded.config), deeper_indices(kinds, expanded.control.total)
    select_layers(deeper.get_text_config(decoder=True), source_layers(expanded))
    expansion = expansion_object(config, expanded, len(source_layers(expanded)), unfrozen)
    warn_of_losses(config, control_config(expansion, expanded.control.layers))
    values = {k: v for k, v in deeper.to_dict().items() if k != IGNORED}
    values |= {
        "num_hidden_layers": len(source_layers(expanded)),
        "architectures": [f"{class_before(expanded, ControlModel).__name__}Expansion"],
        "base_model_type": expanded.config.model_type,
        "model_type": "causallmexpansion",
        "expansion": expansion,
    }
    folder, tied = Path(folder), _tied(expanded)

    def write(tensors: dict[str, Tensor]) -> None:
        state = {names[name]: published_value(name, t, config.interpolation) for name, t in tensors.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(state, folder, max_shard_size=max_shard_size, shared_tensors_to_discard=tied)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")

    write_once(expanded.state_dict(keep_vars=True), write)
    return folder


def _skeleton(
    values: dict[str, Any], base: Any, layer_map: LayerMap, dtype: torch.dtype, eager: bool
) -> PreTrainedModel:
    """A model of the base architecture, random; its weights come from the checkpoint."""
    source = base if base is not None else values["expansion"].get("expanded_from")
    if isinstance(source, PreTrainedModel):
        config = type(source.config).from_dict(source.config.to_dict())
    elif base is not None or (source and isinstance(source, str) and Path(source).is_dir()):
        config = AutoConfig.from_pretrained(source)
    else:
        source, config = None, _config_of(values)
    text = config.get_text_config(decoder=True)
    if source is None:
        select_layers(text, layer_map.base_layers)
    elif text.num_hidden_layers != len(layer_map.base_layers):
        name = type(source).__name__ if isinstance(source, PreTrainedModel) else repr(str(source))
        raise CheckpointError(
            f"the base model {name} has {text.num_hidden_layers} layers, but the checkpoint was expanded from "
            f"{len(layer_map.base_layers)}: give base the model that it was expanded from"
        )
    kwargs = {"attn_implementation": "eager"} if eager else {}
    # the dtype is given here and not set with .to() behind, which would also round RoPE's frequencies
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, **kwargs)
    return model


def _dtype(tensors: dict[str, Tensor], config: ControlConfig) -> torch.dtype:
    """The dtype of the layers' weights, fp32 where they differ. Interpolations stay in fp32, as `expand` makes them."""
    added = tuple(layout_of(config.interpolation).tensors.values())
    dtypes = {t.dtype for name, t in tensors.items() if t.is_floating_point() and not name.endswith(added)}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _config_of(values: dict[str, Any]) -> PreTrainedConfig:
    """The base config inside config.json; the published models are Llamas and say no other type."""
    plain = {k: v for k, v in values.items() if k not in ("expansion", "architectures", "model_type")}
    return AutoConfig.for_model(plain.pop("base_model_type", "llama"), **plain)


def _load_strictly(model: Any, tensors: dict[str, Tensor], expansion: dict[str, Any], folder: Path) -> None:
    """Fill the model. Raises CheckpointError for tensors that are missing, extra or misshapen, by their names there."""
    names, own, config = published_names(model), model.state_dict(), model.control.config
    optional = set(_tied(model)) if getattr(model.config, "tie_word_embeddings", False) else set()
    alone = expansion.get("interpolation_factor", 0) is None  # nothing is mixed: theta stays as alpha 1 made it
    unused = {name for name in names if alone and name.endswith(".interpolation.theta")}
    state = {
        name: our_value(name, tensors[theirs], config.interpolation)
        for name, theirs in names.items()
        if theirs in tensors and name not in unused
    }
    needed, known = names.keys() - optional - unused, set(names.values())
    misshapen = [name for name in state if state[name].shape != own[name].shape]
    found = {
        "missing": [theirs for name, theirs in names.items() if name in needed and name not in state],
        "extra": [n for n in tensors if n not in known and not n.endswith("rotary_emb.inv_freq")],
        "of another shape": [f"{names[name]}, {tuple(tensors[names[name]].shape)}" for name in misshapen],
    }
    faults = [f"{len(those)} {kind} (first: {those[0]})" for kind, those in found.items() if those]
    if faults:
        hint = _norm_hint(found["extra"], expansion)
        raise CheckpointError(f"tensors in {folder} do not fit its config: {'; '.join(faults)}{hint}")
    model.load_state_dict(state, strict=False)


def _norm_hint(extra: list[str], expansion: dict[str, Any]) -> str:
    """What to do about extra tensors that relaxed norms may own: in this layout they own none."""
    own = [name for name in extra if "norm" in name or name.endswith("interpolation_factor")]
    if not own:
        return ""
    value = repr(expansion["interpolation_norm_alpha"]) if "interpolation_norm_alpha" in expansion else "missing"
    return (
        f". interpolation_norm_alpha is {value}, and {own[0]} may belong to relaxed norms of another formula than the "
        "layout's, c x + (1 - c) norm(x) with a constant c, or for -1 the layer's own alpha. If their c is a known "
        "constant, write it there in config.json and drop these tensors; else the checkpoint cannot be loaded"
    )


def _check_count(name: str, value: Any, found: int, folder: Path) -> None:
    if value is not None and value != found:
        raise CheckpointError(
            f"config.json of {folder} says {name}={value!r}, but its tensors and freezed_layers give {found}: a shard "
            "is missing, or the config is another model's"
        )


def _tied(model: Any) -> list[str]:
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return list(keys)


def _read_all(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} has no 'weight_map' of tensors to files: the checkpoint is damaged")
        names = sorted(set(shards.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(read_tensors(folder / name))
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no text
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object, but a {type(values).__name__}")
    return values

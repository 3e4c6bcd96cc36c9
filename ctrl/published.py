"""The layout of the published Control LLM checkpoints: read and write it.

Their config.json has an `expansion` object, whose values and their meaning here are in the tables below; the names of
their tensors are in `ctrl.published_names`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ctrl.config import ControlConfig
from ctrl.control_model import IGNORED
from ctrl.errors import ConfigError, unknown_name
from ctrl.model import expand, expanded_layers, require_expanded
from ctrl.published_names import TENSORS, Places, deeper_indices, layer_index, to_ours, to_published
from ctrl.saving import CheckpointError, read_tensors
from ctrl.structure import decoder_layers

INTERPOLATION = {name: name for name in ("lerp", "slerp", "dlerp", "dlerpin", "moe", "proj")} | {"prog": "plerp"}
DIVERGENCE = {"mse": "mse", "cosine": "cosine_smooth", "dot": "norm", "attention": "attention"}


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
    if "expansion" not in values:
        raise CheckpointError(
            f"{folder / 'config.json'} has no 'expansion' object: it is no published Control LLM model"
        )
    expansion = values["expansion"]
    tensors = _read_all(folder)
    total = 1 + max((int(p) for name in tensors for p in layer_index(name)), default=-1)
    places = Places(expansion, total)
    config = control_config(expansion, places.originals)
    model = _skeleton(values, base, places.base_layers, eager=config.divergence == "attention")
    expand(model, config)
    state = {ours: tensor for name, value in tensors.items() for ours, tensor in to_ours(name, value, model, places)}
    _load_strictly(model, state, folder)
    return model


def control_config(expansion: Mapping[str, Any], originals: list[int]) -> ControlConfig:
    """The ControlConfig that an `expansion` object describes. Raises ConfigError for an unknown value."""
    method, loss = expansion.get("merge_method") or "lerp", expansion.get("interpolation_loss_type") or "mse"
    for kind, value, known in (("merge_method", method, INTERPOLATION), ("interpolation_loss_type", loss, DIVERGENCE)):
        if value not in known:
            raise ConfigError(unknown_name(kind, value, list(known)))
    theta, weight = expansion.get("interpolation_factor"), expansion.get("interpolation_loss_alpha") or 0.0
    learned = theta is not None and not expansion.get("freeze_interpolation_factor", True)
    start = 1.0 if theta is None else 1 / (1 + math.exp(-max(-700.0, min(700.0, theta))))  # null: the copy alone
    norm_mix = expansion.get("interpolation_norm_alpha") or 0.0
    return ControlConfig(
        structure=expansion.get("expand_type", "concat"),
        layers=originals,
        interpolation=INTERPOLATION[method],
        alpha="learned" if learned else "fixed",
        alpha_start=min(max(start, 1e-6), 1 - 1e-6) if learned else start,
        divergence=DIVERGENCE[loss] if weight else "none",
        divergence_weight=1.0 if weight == -1 else float(weight),
        scale_by_alpha=weight == -1,
        norm_mix="alpha" if norm_mix == -1 else float(norm_mix),
    )


def export_published(model: nn.Module, folder: str | os.PathLike[str], max_shard_size: str = "5GB") -> Path:
    """Write an expanded model in the published layout. Raises ConfigError for what the layout cannot hold."""
    expanded: Any = require_expanded(model)
    config: ControlConfig = expanded.control.config
    _check_exportable(config)
    layers = expanded_layers(expanded)
    kinds = {layer.index: layer.kind for layer in layers}
    where, unfrozen = deeper_indices(kinds, expanded.control.total)
    prefix = _prefix(expanded)
    state: dict[str, Tensor] = {}
    for name, tensor in expanded.state_dict().items():
        state.update(to_published(name, tensor.detach(), prefix, where, kinds, config))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = expanded.control.total + sum(kind == "stack" for kind in kinds.values())
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, shared_tensors_to_discard=_tied(expanded))
    values = {k: v for k, v in expanded.config.to_dict().items() if k != IGNORED}
    values |= {
        "num_hidden_layers": total,
        "architectures": [f"{type(expanded).__name__}Expansion"],
        "base_model_type": expanded.config.model_type,
        "model_type": "causallmexpansion",
        "expansion": _expansion(config, expanded, total, unfrozen),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return folder


def _expansion(config: ControlConfig, model: Any, total: int, unfrozen: set[int]) -> dict[str, Any]:
    theta = None if config.alpha_start == 1 else math.log(config.alpha_start / (1 - config.alpha_start) or 1e-300)
    back = {ours: theirs for theirs, ours in DIVERGENCE.items()} | {"cosine": "cosine"}
    weight = -1 if config.scale_by_alpha else config.divergence_weight
    return {
        "expand_type": config.structure,
        "merge_method": {ours: theirs for theirs, ours in INTERPOLATION.items()}[config.interpolation],
        "freezed_layers": [i for i in range(total) if i not in unfrozen],
        "expanded_from": model.config._name_or_path,
        "num_ori_layers": model.control.total,
        "num_exp_layers": len(unfrozen),
        "interpolation_factor": theta,
        "interpolation_loss_alpha": 0 if config.divergence == "none" else weight,
        "interpolation_loss_type": back.get(config.divergence, "mse"),
        "interpolation_norm_alpha": -1 if config.norm_mix == "alpha" else config.norm_mix,
        "freeze_interpolation_factor": config.alpha == "fixed",
        "freeze_ori_layers": True,
        "freeze_ori_non_layers": True,
    }


def _check_exportable(config: ControlConfig) -> None:
    if config.interpolation not in TENSORS:
        raise ConfigError(f"the published layout has no interpolation {config.interpolation!r}: {', '.join(TENSORS)}")
    if config.expanded != "full":
        raise ConfigError("the published layout holds full copies: expanded='lora' cannot be exported")


def _skeleton(values: dict[str, Any], base: Any, layers: int, eager: bool) -> PreTrainedModel:
    """A model of the base architecture with the right number of layers; its weights come from the checkpoint."""
    source = base if base is not None else values["expansion"].get("expanded_from")
    if isinstance(source, PreTrainedModel):
        config = type(source.config).from_dict(source.config.to_dict())
    elif base is not None or (source and Path(source).is_dir()):
        config = AutoConfig.from_pretrained(source)
    else:
        config = _config_of(values)
    text = config.get_text_config(decoder=True)
    if text.num_hidden_layers != layers:
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == text.num_hidden_layers:
                setattr(text, name, value[:layers])
        text.num_hidden_layers = layers
    kwargs = {"attn_implementation": "eager"} if eager else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **kwargs)
    return model


def _config_of(values: dict[str, Any]) -> PreTrainedConfig:
    """The base config inside config.json; the published models are Llamas and say no other type."""
    plain = {k: v for k, v in values.items() if k not in ("expansion", "architectures", "model_type")}
    return AutoConfig.for_model(plain.pop("base_model_type", "llama"), **plain)


def _load_strictly(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    tied = set(_tied(model)) if getattr(model.config, "tie_word_embeddings", False) else set()
    absent = [n for n in own if n not in state and n not in tied and not _optional(n, model)]
    extra = [n for n in state if n not in own]
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape]
    faults = [
        f"{len(names)} {kind} (first: {names[0]})"
        for kind, names in (("missing", absent), ("extra", extra), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise CheckpointError(f"tensors in {folder} do not fit its config: {'; '.join(faults)}")
    dtypes = {t.dtype for n, t in state.items() if ".interpolation." not in n}
    model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)  # type: ignore[arg-type]
    model.load_state_dict(state, strict=False)


def _optional(name: str, model: Any) -> bool:
    """theta where the config says that nothing is mixed (interpolation_factor null)."""
    return name.endswith("interpolation.theta") and model.control.config.alpha_start == 1.0


def _tied(model: Any) -> list[str]:
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return list(keys)


def _read_all(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(read_tensors(folder / name))
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return values
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _prefix(model: Any) -> str:
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)

"""Read and write the layout of the published Control LLM checkpoints.

Their config.json has an `expansion` object (see `ctrl.published_config`); for the names of their tensors see
`ctrl.published_names`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.changes import remember_base
from ctrl.checkpoint import read_tensors, refuse_base
from ctrl.config import ControlConfig
from ctrl.control_model import ControlModel, bare_expanded
from ctrl.errors import CheckpointError, ConfigError
from ctrl.generation import config_of
from ctrl.layer import class_before, expanded_layers
from ctrl.model import expand
from ctrl.offloaded import in_memory
from ctrl.outputs import IGNORED
from ctrl.plain import source_layers
from ctrl.precision import HALF
from ctrl.published_base import (
    GENERATION_FILE,
    base_dtype,
    read_generation,
    skeleton,
    take_types,
    warn_of_rounded_buffers,
)
from ctrl.published_config import check_exportable, control_config, expansion_object, warn_of_losses
from ctrl.published_names import (
    LayerMap,
    deeper_indices,
    layer_index,
    our_value,
    published_names,
    published_value,
)
from ctrl.quantised import refuse_quantised
from ctrl.sharded import write_once
from ctrl.structure import says_another_head, select_layers

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def load_published(
    folder: str | os.PathLike[str], base: PreTrainedModel | str | os.PathLike[str] | None = None
) -> PreTrainedModel:
    """Load an expanded model from a published checkpoint, in one file or several. It is in eval mode.

    base: name or folder of the base model, or a model. Only its architecture is used: all weights are in the
        checkpoint. Default: the folder `expanded_from` of config.json if it exists on this machine, else the Llama
        fields of config.json. A base whose config computes something else than config.json gets a warning.
    Settings of generation are those of generation_config.json, else the base's.

    Raises CheckpointError or ConfigError that names what is missing, extra or unknown.
    """
    folder = Path(folder)
    values = _read_json(folder / "config.json")
    expansion = values.get("expansion")
    if not isinstance(expansion, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} has no 'expansion' object: it is not a published Control LLM model"
        )
    tensors = _read_all(folder)
    total = 1 + max((i for name in tensors for i in layer_index(name)), default=-1)
    _check_count("num_hidden_layers", values.get("num_hidden_layers"), total, folder)
    layer_map = LayerMap(expansion, total)
    _check_count("num_ori_layers", expansion.get("num_ori_layers"), len(layer_map.base_layers), folder)
    config = control_config(expansion, layer_map.originals)
    eager = config.divergence == "attention"
    try:
        model = skeleton(values, base, layer_map, base_dtype(tensors, config, layer_map), eager)
    except (CheckpointError, ConfigError, MemoryError):
        raise
    except Exception as error:  # transformers has a dozen classes for a config with which it cannot build a model
        said = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"no model can be built from {folder / 'config.json'} and its base ({type(error).__name__}: {said}): "
            "download it again, or pass the base model itself"
        ) from error
    take_types(model, tensors, layer_map)
    read_generation(model, folder, base)
    expand(model, config)
    _load_strictly(model, tensors, expansion, folder)
    return model.eval()


def export_published(model: nn.Module, folder: str | os.PathLike[str], max_shard_size: str = "5GB") -> Path:
    """Write an expanded model in the published layout and return the folder.

    Settings that only further training needs and that the layout cannot hold (it has one cosine form, no margin, ...)
    are left out, with a warning that lists them. Raises ConfigError for those that change the model's outputs, and for
    an alpha of `ctrl.at_alpha`. Tensors keep their dtypes: fp32 copies over a bf16 base stay fp32. If the model is
    sharded over processes (FSDP2), every process must call this, as in `ctrl.save`.

    An older export stays until the new one is complete. A kill while the files are renamed leaves a folder without
    config.json, which is refused.
    """
    expanded: Any = bare_expanded(model)
    config: ControlConfig = expanded.control.config
    check_exportable(expanded)
    refuse_quantised(expanded, "export_published")
    names = published_names(expanded)
    kinds = {layer.index: layer.kind for layer in expanded_layers(expanded)}
    deeper, (_, unfrozen) = copy.deepcopy(expanded.config), deeper_indices(kinds, expanded.control.total)
    select_layers(deeper.get_text_config(decoder=True), source_layers(expanded))
    expansion = expansion_object(config, expanded, len(source_layers(expanded)), unfrozen)
    warn_of_losses(config, control_config(expansion, expanded.control.layers), expanded.dtype in HALF)
    warn_of_rounded_buffers(expanded, class_before(expanded, ControlModel))
    if says_another_head(expanded):
        deeper.tie_word_embeddings = deeper.get_text_config(decoder=True).tie_word_embeddings = False
    values = {k: v for k, v in deeper.to_dict().items() if k != IGNORED}
    values |= {
        "num_hidden_layers": len(source_layers(expanded)),
        "architectures": [f"{class_before(expanded, ControlModel).__name__}Expansion"],
        "base_model_type": expanded.config.model_type,
        "model_type": "causallmexpansion",
        "expansion": expansion,
    }
    folder, tied = Path(folder), _tied(expanded)
    refuse_base(folder, expanded.config._name_or_path)

    def write(tensors: dict[str, Tensor]) -> None:
        state = {names[name]: published_value(name, t, config.interpolation) for name, t in tensors.items()}
        part = folder / ".export.part"
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir(parents=True)
        try:
            save_torch_state_dict(state, part, max_shard_size=max_shard_size, shared_tensors_to_discard=tied)
            (part / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            if (settings := config_of(expanded)) is not None:
                settings.to_json_file(part / GENERATION_FILE)
            _replace_export(folder, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    write_once(in_memory(expanded, expanded.state_dict(keep_vars=True)), write)
    return folder


def _replace_export(folder: Path, part: Path) -> None:
    """Put the files of an export in place of an older one's. config.json goes first and comes last: nobody reads a mix.

    Two exports have the same names and shapes, so shards of both would load as one model.
    """
    new = sorted((path.name for path in part.iterdir()), key="config.json".__eq__)
    for name in ("config.json", *(path.name for path in folder.iterdir())):
        own = WEIGHTS.fullmatch(name) or name in ("config.json", INDEX_FILE, GENERATION_FILE)
        if own and (name == "config.json" or name not in new):
            (folder / name).unlink(missing_ok=True)
    for name in new:
        os.replace(part / name, folder / name)


def _load_strictly(model: Any, tensors: dict[str, Tensor], expansion: dict[str, Any], folder: Path) -> None:
    """Fill the model. Raises CheckpointError with the published names of missing, extra or misshapen tensors."""
    names, own, config = published_names(model), model.state_dict(), model.control.config
    optional = set(_tied(model)) if getattr(model.config, "tie_word_embeddings", False) else set()
    alone = expansion.get("interpolation_factor", 0) is None  # nothing is mixed: theta stays at alpha = 1
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
    remember_base(model.control, model)  # expand saw random weights


def _norm_hint(extra: list[str], expansion: dict[str, Any]) -> str:
    """Explain extra tensors that may belong to relaxed norms; return '' if there are none."""
    own = [name for name in extra if "norm" in name or name.endswith("interpolation_factor")]
    if not own:
        return ""
    value = repr(expansion["interpolation_norm_alpha"]) if "interpolation_norm_alpha" in expansion else "missing"
    return (
        f". interpolation_norm_alpha is {value}, but {own[0]} may belong to relaxed norms. Learned ones have one "
        "interpolation_factor per norm of the expanded layer: write interpolation_norm_alpha -1 into config.json. "
        "Norms of another formula than c x + (1 - c) norm(x) cannot be loaded"
    )


def _check_count(name: str, value: Any, found: int, folder: Path) -> None:
    if value is not None and value != found:
        raise CheckpointError(
            f"config.json of {folder} has {name}={value!r}, but its tensors and freezed_layers give {found}: a shard "
            "is missing, or the config belongs to another model"
        )


def _tied(model: Any) -> list[str]:
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return list(keys)


def _read_all(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX_FILE
    names = ["model.safetensors"]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} has no 'weight_map' from tensors to files: the checkpoint is damaged")
        names = sorted(set(map(str, shards.values())))
        if strange := [name for name in names if Path(name).name != name]:
            raise CheckpointError(
                f"{index} names {strange[0]!r}, which is not in its folder: do not use the checkpoint"
            )
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(read_tensors(folder / name))
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # not JSON, not text, nested too deep
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a {type(values).__name__}")
    return values

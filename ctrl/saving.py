"""Save and load: only what was trained, as safetensors, with the config as JSON beside it.

A folder holds `control_config.json` and `model.safetensors`. It has no config.json, so that from_pretrained refuses it
instead of loading a plain model that lacks the copies; the weights' name is the one Trainer resumes from.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ctrl.config import ControlConfig
from ctrl.errors import CheckpointError
from ctrl.model import expand, expanded_layers
from ctrl.plain import ADDED, bare_expanded, strip
from ctrl.sharded import write_once

CONFIG_FILE, WEIGHTS_FILE = "control_config.json", "model.safetensors"
FORMAT = 1
REMOTE = ("models:/", "runs:/", "mlflow-artifacts:/")


def save(model: nn.Module, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None) -> Path:
    """Write the trained tensors and the config; the old files stay until the new ones are complete.

    state_dict: default: the model's own. Where its tensors are sharded over processes (FSDP2's DTensors) all of them
    call `save`: what was trained is gathered tensor by tensor, the first process writes, the others wait for it. A
    call by the first one alone would wait for ever. Returns the folder. Raises CheckpointError when the folder cannot
    be written (no space, no permission), in every process, and ConfigError where adapters of PEFT sit on top.
    """
    model = bare_expanded(model)
    folder = Path(folder)
    names = trained_names(model)
    state = model.state_dict() if state_dict is None else state_dict
    base = {**_base_facts(model), "expanded_layers": model.control.layers}
    meta = {"format": FORMAT, "control": model.control.config.to_dict(), "base": base}
    write_once({name: state[name] for name in names}, lambda tensors: _write(folder, tensors, meta))
    return folder


def _write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _replace(folder / CONFIG_FILE, lambda path: path.write_text(json.dumps(meta, indent=2) + "\n"))
    except (OSError, SafetensorError) as error:
        size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
        raise CheckpointError(
            f"cannot save {size:.0f} MB to {folder}: {error}. Free space or choose another folder"
        ) from error


def load(base_model: PreTrainedModel | str, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Expand the base model (a model, changed in place, or a name or folder) and load what `save` wrote.

    folder: a folder, or where MLflow keeps one: `models:/<model_id>`, `runs:/<run_id>/<path>`, looked for in the store
    that `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI names.

    On a base of the dtype that was trained on, every tensor comes back in the dtype it was saved in; on another one it
    takes the base's, with a warning where that rounds. Raises CheckpointError, and leaves the base as it was, for a
    folder that is not such a checkpoint, is cut short or was trained on another base.
    """
    folder = _here(folder)
    meta = _read_config(folder)
    config, tensors = ControlConfig.from_dict(meta["control"]), read_tensors(folder / WEIGHTS_FILE)
    model = AutoModelForCausalLM.from_pretrained(base_model) if isinstance(base_model, str) else base_model
    _check_base(model, meta["base"], folder)
    trainable = [p for p in model.parameters() if p.requires_grad]
    expand(model, config)
    try:
        _check_fit(tensors, model, folder)
    except CheckpointError:
        strip(model)
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    _agree_on_dtypes(tensors, model, meta["base"].get("dtype"))
    model.load_state_dict(tensors, strict=False)
    return model


def _here(folder: str | os.PathLike[str]) -> Path:
    """The folder on this disk. MLflow is imported for its own addresses only: this library does not depend on it."""
    if not str(folder).startswith(REMOTE):
        return Path(folder)
    try:
        artifacts = importlib.import_module("mlflow.artifacts")
        return Path(artifacts.download_artifacts(str(folder)))
    except ImportError as error:
        raise CheckpointError(f"{folder} needs mlflow: pip install mlflow, or give a folder") from error
    except Exception as error:
        raise CheckpointError(
            f"MLflow does not give {folder}: {error}. Set MLFLOW_TRACKING_URI to the store that has it, for example "
            "sqlite:///mlruns/mlflow.db"
        ) from error


def added_names(model: nn.Module) -> list[str]:
    """State names of what expand added: copies and interpolations."""
    state = model.state_dict(keep_vars=True)  # first: FSDP shards again for it what a forward pass has gathered
    marks = {id(t) for layer in expanded_layers(model) for t in _added_tensors(layer)}
    return [name for name, tensor in state.items() if id(tensor) in marks]


def trained_names(model: nn.Module) -> list[str]:
    """State names of what training may have changed: everything added, and what else was unfrozen."""
    added = set(added_names(model))
    state = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    names = []
    for name, tensor in state.items():
        if (name in added or tensor.requires_grad) and id(tensor) not in seen:  # tied weights once
            seen.add(id(tensor))
            names.append(name)
    return names


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError if it is missing or cut short."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: the checkpoint was not saved to its end")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): save it again") from error


def _added_tensors(layer: Any) -> list[Tensor]:
    """The copy's and the interpolation's tensors, less those a low-rank copy shares with its original."""
    parts = [layer.expanded] if layer.interpolation is None else [layer.expanded, layer.interpolation]
    own = {id(t) for name, t in layer.named_parameters(remove_duplicate=False) if not name.startswith(ADDED)}
    added = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return [t for t in added if id(t) not in own]


def _replace(path: Path, write: Any) -> None:
    """Write beside, then rename, so that a full disk or a kill leaves the old file."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}: it is not a folder written by ctrl.save")
    try:
        meta = json.loads(path.read_text())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {meta['format']}, this version reads {FORMAT}: update ctrl")
        return {"base": meta["base"], "control": meta["control"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a control config ({error!r}): save the model again") from error


def _base_facts(model: nn.Module) -> dict[str, Any]:
    """What must agree between the base that was expanded and the base a checkpoint is loaded onto."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    return {
        "name": config._name_or_path,
        "model_type": config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
        "dtype": str(model.dtype),
    }


def _check_base(model: nn.Module, saved: dict[str, Any], folder: Path) -> None:
    here = _base_facts(model)
    wrong = [k for k in here if k not in ("name", "dtype") and k in saved and saved[k] != here[k]]
    if wrong:
        differences = ", ".join(f"{k} {saved[k]} there, {here[k]} here" for k in wrong)
        raise CheckpointError(f"{folder} was trained on another base model, {saved['name']!r}: {differences}")


def _check_fit(tensors: dict[str, Tensor], model: nn.Module, folder: Path) -> None:
    """The checkpoint must hold every tensor that expand added, none that is unknown, all in the model's shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    kinds = {"missing": sorted(set(added_names(model)) - set(tensors)), "unknown": sorted(set(tensors) - set(shapes))}
    faults = [f"{len(names)} {kind} tensors (first: {names[0]})" for kind, names in kinds.items() if names]
    for name, tensor in tensors.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, the model expects {shapes[name]}")
            break
    if faults:
        raise CheckpointError(
            f"{folder} does not fit its own config or this base model: {', '.join(faults)}. Save the model again, or "
            "load it onto the base that it was trained on"
        )


def _agree_on_dtypes(tensors: dict[str, Tensor], model: nn.Module, trained_on: str | None) -> None:
    """The saved tensors' dtypes for the model where its base has the one that was trained on; else say what rounds."""
    here = str(model.dtype)
    state = model.state_dict(keep_vars=True)
    others = {name: tensor for name, tensor in tensors.items() if tensor.dtype != state[name].dtype}
    if trained_on == here:
        for name, tensor in others.items():
            state[name].data = state[name].data.to(tensor.dtype)
        return
    rounded = [n for n, t in others.items() if torch.promote_types(t.dtype, state[n].dtype) != state[n].dtype]
    if rounded:
        warnings.warn(
            f"the checkpoint was trained on a base in {trained_on or 'an unknown dtype'}, this one is in {here}: "
            f"{len(rounded)} tensors are rounded (first: {rounded[0]}). Load the base in the checkpoint's dtype to "
            "have the model that was saved",
            stacklevel=3,
        )

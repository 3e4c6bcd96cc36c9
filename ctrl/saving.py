"""Save what was trained, and load it onto its base model (`ctrl.checkpoint` has the files)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ctrl.checkpoint import (
    WEIGHTS_FILE,
    added_names,
    check_one_save,
    read_config,
    read_tensors,
    write_checkpoint,
)
from ctrl.computes import differences
from ctrl.config import ControlConfig
from ctrl.control_model import bare_expanded
from ctrl.errors import NO_MODEL, CheckpointError, ConfigError, warn
from ctrl.expansion import take_off
from ctrl.facts import base_facts, buffer_types, class_name, rounded_buffers
from ctrl.fingerprint import (
    fingerprint,
    packed_print,
    packed_samples,
    part_prints,
    rest_print,
    same_base,
    samples_of,
)
from ctrl.generation import agree
from ctrl.hub import local_folder
from ctrl.mark import NOTED, other_buffers, other_kinds, other_type
from ctrl.model import expand
from ctrl.quantised import kinds, settings_of
from ctrl.structure import give_own_head
from ctrl.sums import exact_sums, other_rows


def save(model: nn.Module, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None) -> Path:
    """Write the trained tensors and the config, and return the folder. Old files stay until the new ones are complete.

    state_dict: default: the model's own. If its tensors are sharded over processes (FSDP2's DTensors), every process
    must call `save`: trained tensors are gathered one by one, rank 0 writes, the others wait for it. A call on rank 0
    only would wait for ever. Raises CheckpointError in every process if the folder cannot be written (no space, no
    permission), and ConfigError if the model holds PEFT adapters.
    """
    return write_checkpoint(bare_expanded(model), folder, state_dict)


def load(
    base_model: PreTrainedModel | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    allow_other_base: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Expand the base model and load what `save` wrote.

    base_model: a model, which is changed in place, or the name or folder of one.
    folder: a folder, a repository of the Hugging Face Hub (`me/name`, or `me/name@revision`), or an address in MLflow:
        `models:/<model_id>` or `runs:/<run_id>/<path>`, in the store that `mlflow.set_tracking_uri` or
        MLFLOW_TRACKING_URI names.
    allow_other_base: load onto a base of the same shapes whose weights are not those in training.
    kwargs: for the base's `from_pretrained`, if it is given by name (device_map, revision, quantization_config, ...).
        Its dtype is the one in training by default.

    A base given by name generates with the saved model's settings (generation_config): where replies end, and those
    that are not transformers' defaults. Its own come back in `pretrained`, `unload`, `swap` and `reference`.

    If the base has the dtype of the base in training, every tensor gets the dtype in which it was saved. Otherwise it
    gets the dtype of this base, with a warning if that rounds. Raises CheckpointError, and leaves the base unchanged,
    if the folder is no such checkpoint, is incomplete, or was trained on another base. Warns of weights that are not
    those that `save` wrote.
    """
    folder = local_folder(folder)
    meta = read_config(folder)
    config, tensors = ControlConfig.from_dict(meta["control"]), read_tensors(folder / WEIGHTS_FILE)
    _check_finite(tensors, folder / WEIGHTS_FILE)
    model = _base(base_model, meta["base"], config, kwargs)
    _check_base(model, meta["base"], folder, allow_other_base, tensors)
    trainable = [p for p in model.parameters() if p.requires_grad]
    expand(model, config)
    if meta["control"].get("norm_mix") == "alpha":
        tensors |= _norm_factors(tensors, added_names(model))
    try:
        _check_fit(tensors, model, folder)
        check_one_save(folder, meta, tensors)
    except CheckpointError:
        take_off(model)
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    if meta["base"].get("own_head"):
        give_own_head(model)
    _agree_on_dtypes(tensors, model, meta["base"].get("dtype"))
    model.load_state_dict(tensors, strict=False)
    frozen, added = set(meta["base"].get("frozen", ())), set(added_names(model))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tensors and (name in frozen or name not in added):  # as it was at the save
            tensor.requires_grad_(name not in frozen)
    agree(model, meta, named=not isinstance(base_model, nn.Module))
    return model


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointError for NaN or inf, with which no output would be a number. theta is inf at alpha 0 and 1."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    thetas = {n: t.nan_to_num(math.nan, 0.0, 0.0) for n, t in floats.items() if n.endswith(".interpolation.theta")}
    if odd := [name for name, tensor in {**floats, **thetas}.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {len(odd)} tensors hold NaN or inf, the first is {odd[0]}: train it again")


def _base(
    base_model: PreTrainedModel | str | os.PathLike[str],
    saved: dict[str, Any],
    config: ControlConfig,
    kwargs: dict[str, Any],
) -> PreTrainedModel:
    """Return the base model; load it if it is given by name, by default as it was in training."""
    if isinstance(base_model, str | os.PathLike):
        made = saved.get("class", "")
        if hasattr(transformers, made) and made not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            raise CheckpointError(
                f"the base in training was a {made}, and a name is loaded as a causal language model: pass the model "
                f"itself, transformers.{made}.from_pretrained({str(base_model)!r}, ...)"
            )
        if not {"dtype", "torch_dtype"} & kwargs.keys() and "dtype" in saved:
            kwargs["dtype"] = _dtype(saved["dtype"])
        if config.divergence == "attention":
            kwargs.setdefault("attn_implementation", "eager")
        kwargs.setdefault("trust_remote_code", False)  # transformers would ask on a terminal, and run files on a y
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base_model, **kwargs)
        except (OSError, ValueError) as error:
            first = str(error).partition("\n")[0]
            if "trust_remote_code" in str(error):
                first = "it brings Python files, which are not run: read them, then pass trust_remote_code=True"
            raise CheckpointError(f"the base model {str(base_model)!r} could not be loaded: {first}") from error
        return model
    if not isinstance(base_model, nn.Module):
        raise ConfigError(NO_MODEL.format(type(base_model).__name__))
    if kwargs:
        raise ConfigError(f"load got a model and {', '.join(kwargs)}: give these when you load the model itself")
    return base_model


def _check_base(
    model: nn.Module, saved: dict[str, Any], folder: Path, allow_other: bool, tensors: dict[str, Tensor]
) -> None:
    """Raise CheckpointError if the model differs from the saved facts of the base, or warn if only its name does."""
    here = {**base_facts(model), "fingerprint": fingerprint(model), "part_prints": part_prints(model)}
    here |= {"sums": exact_sums(model), "rest": rest_print(samples_of(model), tensors)}
    if different := differences({k: v for k, v in saved.items() if k not in NOTED}, here):
        raise CheckpointError(f"{folder} was trained on another base model, {saved['name']!r}: {different}")
    different = differences(saved.get("computes", {}), here["computes"])
    if different and not allow_other:
        raise CheckpointError(
            f"{folder} was trained on {saved['name']!r}, whose config computes something else: {different}. Load the "
            "base with the config of the training; allow_other_base=True puts the copies onto this one"
        )
    same, named = same_base(saved, here), saved["name"] and here["name"]
    if same is False and not allow_other:
        why, made, own = "another model of the same shapes, or another revision", saved.get("class"), class_name(model)
        if made and made != own:
            why = f"it was a {made}, this is a {own}: they have not the same head"
        raise CheckpointError(
            f"{folder} was trained on {saved['name']!r}, but the weights of this base, {here['name']!r}, are others "
            f"({why}). Load the base in training; "
            "allow_other_base=True puts the copies onto this one"
        )
    rows = "" if allow_other else other_rows(saved, here)
    now = {**here, "buffers": buffer_types(model), "quantised": kinds(model), "quantisation": settings_of(model)}
    now |= {"packed": packed_print(packed_samples(model)), "rounded": rounded_buffers(model)}
    for other in filter(None, (rows, other_buffers(saved, now), other_kinds(saved, now))):
        warn(f"{folder}: {other}", stacklevel=3)
    if same is None and named and saved["name"] != here["name"] and not allow_other:
        warn(
            f"{folder} was trained on {saved['name']!r}, this base is {here['name']!r}: whether their weights are the "
            "same cannot be seen. If they are not, the copies do not fit",
            stacklevel=3,
        )


def _norm_factors(tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Make the factors of learned norms for a folder from before they had any: their c was sigmoid(theta).

    f = 2 artanh(c) gives the same c.
    """
    factors = {}
    for name in names:
        theta = tensors.get(f"{name.partition('.expanded.')[0]}.interpolation.theta")
        if name.endswith(".interpolation_factor") and theta is not None:
            factors[name] = 2 * torch.atanh(torch.sigmoid(theta.double())).float()
    return factors


def _check_fit(tensors: dict[str, Tensor], model: nn.Module, folder: Path) -> None:
    """Raise CheckpointError if a tensor that expand added is missing, or if one is unknown or has a wrong shape."""
    state = model.state_dict()  # torch.ao's quantised modules keep other values than tensors there
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    kinds = {"missing": sorted(set(added_names(model)) - set(tensors)), "unknown": sorted(set(tensors) - set(shapes))}
    faults = [f"{len(names)} {kind} tensors (first: {names[0]})" for kind, names in kinds.items() if names]
    for name, tensor in tensors.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, the model expects {shapes[name]}")
            break
    if faults:
        raise CheckpointError(
            f"{folder} does not fit its own config or this base model: {', '.join(faults)}. Save the model again, or "
            "load it onto the base on which it was trained"
        )


def _agree_on_dtypes(tensors: dict[str, Tensor], model: Any, trained_on: str | None) -> None:
    """Give the model the dtypes of the saved tensors if its base has the dtype in training, else warn of rounding."""
    base: Any = model.dtype
    here = str(base)
    state = model.state_dict(keep_vars=True)
    if trained_on == here:
        for name, tensor in tensors.items():
            state[name].data = state[name].data.to(tensor.dtype)
        return
    full = model.control.config.expanded == "full"  # such copies compute in the base's dtype
    computed = {name: base if full and ".expanded." in name else state[name].dtype for name in tensors}
    rounded = [n for n, t in tensors.items() if torch.promote_types(t.dtype, computed[n]) != computed[n]]
    if rounded:
        warn(
            f"the checkpoint was trained on a base in {trained_on or 'an unknown dtype'}, this one is in {here}: "
            f"{len(rounded)} tensors are rounded (first: {rounded[0]}). Load the base in the checkpoint's dtype to get "
            "the model that was saved",
            stacklevel=3,
        )
    elif text := other_type(trained_on, model):
        warn(text, stacklevel=3)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return found

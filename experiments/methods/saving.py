"""Save what was trained, and load it onto the base again."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.checkpoint import CONFIG_FILE, WEIGHTS_FILE, trained_names
from ctrl.computes import differences
from ctrl.control_model import ControlModel
from ctrl.facts import base_facts
from ctrl.fingerprint import fingerprint, same_base
from ctrl.mark import MARK, marked_again
from ctrl.saving import save
from ctrl.sharded import write_once
from experiments.common.errors import DamagedError
from experiments.common.files import PART, read_json, write_json
from experiments.models.checked import short_text
from experiments.models.precision import DTYPES, compute_as_base

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name
MODEL_CONFIG = "config.json"  # next to a whole model
BASE = "base.json"  # facts of the base model, of which a part or an adapter holds no weights
LACKING = "Found missing adapter keys"  # the warning of PEFT, without false alarms
AGAIN = "bring it back, or delete the arm's folder and run the same command to train it again"
UNREADABLE = (  # of PEFT, safetensors and torch, for files of an adapter
    *(UserWarning, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)


def is_peft(model: Any) -> bool:
    """Return whether PEFT wraps the model, without importing PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def tied_modules(model: Any) -> list[str]:
    """List the modules with an adapter that share their weight with another one: folded in, it would be on all of them.

    Trainable tokens are the exception: PEFT knows the other module.
    """
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    weights = {name: getattr(getattr(one, "base_layer", None), "weight", None) for name, one in model.named_modules()}
    found = [name for name, weight in weights.items() if weight is not None and owners[id(weight)] > 1]
    return [name for name in found if "Token" not in type(model.get_submodule(name)).__name__]


def save_trained(model: PreTrainedModel, folder: Path) -> Path:
    """Write what was trained: in ctrl's format, in PEFT's, the whole model, or (partial) only the tensors that train.

    PEFT chooses itself: some types need frozen tensors too (VeRA's projections). If the model is sharded, every process
    calls it, and rank 0 writes.
    """
    if isinstance(model, ControlModel):
        return save(model, folder)
    state = model.state_dict(keep_vars=True)
    whole = not is_peft(model) and all(p.requires_grad for p in model.parameters())
    names = list(state) if whole or is_peft(model) else trained_names(model)

    def write(tensors: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if is_peft(model):
            model.save_pretrained(folder, state_dict=tensors, save_embedding_layers=False)
        elif whole:
            model.save_pretrained(folder, state_dict=tensors)
        else:
            save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    write_once({name: state[name] for name in names}, write)
    return folder


def facts_of(base: PreTrainedModel) -> dict[str, Any]:
    """Return the facts in which a base to load onto must agree with this one, with a fingerprint of its weights."""
    return {**base_facts(base), "fingerprint": fingerprint(base)}


def differing_base(saved: dict[str, Any], here: dict[str, Any], whole: bool = False) -> str:
    """Say how the facts of two bases differ; an empty text if they do not, or if it cannot be seen.

    whole: the weights do not count.
    """
    noted = ("name", "dtype", "fingerprint", "buffers")
    different = differences({k: v for k, v in saved.items() if k not in noted}, here)
    if not different and not whole and same_base(saved, here) is False:
        return "its weights are others (another model of the same shapes, or another revision)"
    return different


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts of the base model that was trained (`facts_of`) next to what was trained."""
    write_json(folder / BASE, facts)


def round_files(folder: Path, dtype: str) -> None:
    """Round the matrices of fp32 in saved weights to a dtype, a name of DTYPES. Vectors and alphas stay as they are."""
    if dtype == "fp32":
        return
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32 and tensor.dim() > 1}
        rounded = {name: tensors[name].to(DTYPES[dtype]) for name in wide}
        if MARK in tensors:
            rounded[MARK] = marked_again(tensors[MARK], rounded)
        part = file.with_name(f".{file.name}{PART}")
        save_file({**tensors, **rounded}, part, metadata=metadata)
        os.replace(part, file)


def load_onto(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load what `save_trained` wrote onto a fresh base model, which is changed, and return the model.

    Raises DamagedError for weights of another arm or base model, ctrl.CheckpointError for those of another expansion.
    """
    if (folder / CONFIG_FILE).is_file():
        return _widened(ctrl.load(base, folder))
    whole = (folder / MODEL_CONFIG).is_file()  # has all weights, but is read with the config of the base
    _check_base(base, folder / BASE, whole)
    if (folder / ADAPTER_CONFIG).is_file():
        return _with_adapter(base, folder)
    return _filled(base, folder / WEIGHTS_FILE, whole)


def _widened(model: PreTrainedModel) -> PreTrainedModel:
    """Hold what trained in fp32, as it trained, also if it was kept in fewer bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def check_same_base(base: PreTrainedModel, folder: Path) -> None:
    """Raise DamagedError if what is in a folder was trained on another base, also if it replaces all weights.

    For what adds the change of weights since that base. An expansion's base is checked where it is loaded.
    """
    if (folder / BASE).is_file():
        _check_base(base, folder / BASE, False)


def _check_base(base: PreTrainedModel, file: Path, whole: bool) -> None:
    """Raise DamagedError if a base model is not the one that was trained, or warn if that cannot be seen.

    whole: its weights do not count, since all are replaced.
    """
    saved, here = read_json(file, AGAIN), facts_of(base)
    same = whole or same_base(saved, here)
    different = differing_base(saved, here, whole)
    named = saved.get("name") or read_json(file.with_name(ADAPTER_CONFIG), AGAIN).get("base_model_name_or_path")
    if not different and same is None and Path(named or "an unknown model").name != Path(here["name"]).name:
        warnings.warn(
            f"{file.parent} was trained on {named or 'an unknown model'}, and is loaded onto {here['name']}: whether "
            f"their weights are the same cannot be seen (no digest of them in {file.name}, which earlier versions did "
            "not write). If they may differ, delete the arm's folder and run the same command",
            stacklevel=3,
        )
    if different:
        raise DamagedError(
            f"{file.parent} was trained on the base model {saved.get('name')!r}, but {here['name']!r} is another one: "
            f"{different}. Bring back the base model of the training, or train again (a run: with --fresh)"
        )


def _with_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put an adapter in PEFT's format on the base. Raises DamagedError if it does not fit, or lacks tensors, or has
    more than its config names: PEFT drops those."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", LACKING)  # PEFT goes on with random tensors
        try:
            model = PeftModel.from_pretrained(base, folder)
            surplus = model.load_adapter(folder, "default").unexpected_keys  # which the first call does not say
        except UNREADABLE as error:
            raise DamagedError(f"{folder} does not fit the base model ({short_text(error)}): {AGAIN}") from error
    if surplus:
        raise DamagedError(
            f"{folder} does not fit the base model ({ADAPTER_CONFIG} has no place for {len(surplus)} tensors of its "
            f"weights, such as {surplus[0]}): {AGAIN}"
        )
    compute_as_base(model)
    return model  # type: ignore[return-value]  # passes all on to the base


def _filled(base: PreTrainedModel, file: Path, whole: bool) -> PreTrainedModel:
    """Set the base's tensors to those of a file, which has all of them or (partial) some. Raises DamagedError."""
    try:
        tensors = load_file(file)
        if whole and tensors.keys() - base.state_dict().keys():
            tensors = _renamed(base, file.parent) or tensors
        left = base.load_state_dict(tensors, strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:  # a shape of another model
        raise DamagedError(f"{file} does not fit the base model ({' '.join(str(error).split())}): {AGAIN}") from error
    tied = set(getattr(base, "all_tied_weights_keys", ()))
    lacking = [name for name in left.missing_keys if name not in tied]
    strange = left.unexpected_keys or (lacking if whole or len(left.missing_keys) == len(base.state_dict()) else [])
    if strange:
        kind = "unknown" if left.unexpected_keys else "missing"
        raise DamagedError(f"{file} is not of this arm and base model, {strange[:3]} are {kind}: {AGAIN}")
    return base


def _renamed(base: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Read a whole model whose files have the names of the Hub (experts one by one), by those of the model in memory.

    Nothing if it is another model.
    """
    given: dict[str, Any] = {"config": copy.deepcopy(base.config), "dtype": torch.float32, "output_loading_info": True}
    loader: Any = type(base)
    model, said = loader.from_pretrained(folder, **given)
    odd = said["missing_keys"] or said["unexpected_keys"] or said["mismatched_keys"]
    return {} if odd else dict(model.state_dict())

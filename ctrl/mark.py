"""Mark the weights of an expansion with what they are of, so that no trainer loads them into another one.

Trainer (resume_from_checkpoint, load_best_model_at_end) reads the tensors of a checkpoint alone, and passes over those
that the model lacks. Copies that were trained next to another base, or in other layers, would train on without a word.
So the file of the weights holds its description too, as a tensor that `load_state_dict` of the model compares. A state
dict in memory, or of torch.save, has no mark: it holds the settings that shape an expansion next to torch's versions.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ctrl.computes import differences
from ctrl.errors import CheckpointError, warn
from ctrl.facts import description
from ctrl.fingerprint import holds_more, rest_print, same_base
from ctrl.sums import byte_sum, other_rows

COMPILED = "_orig_mod"  # what torch.compile calls the module that it wraps
MARK = "control.description"  # the tensor's name
SHAPING = ("structure", "interpolation", "expanded", "lora_rank", "norm_mix")  # what the same tensors compute
# facts of the base that are compared in other ways
NOTED = (
    "name", "dtype", "fingerprint", "fingerprint_dtype", "part_prints", "computes", "frozen", "buffers", "sums",
    "own_head", "rest", "quantised", "quantisation", "packed", "rounded", "class",
)  # fmt: skip


def marked(description: dict[str, Any]) -> Tensor:
    """Return the mark: the description's JSON as bytes."""
    return torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)


def read_mark(mark: Tensor) -> dict[str, Any]:
    """Read a mark. Raises CheckpointError if it is damaged."""
    try:
        noted = json.loads(bytes(mark.tolist()))
        if not isinstance(noted["control"], dict) or not {"name", "dtype", "computes"} <= noted["base"].keys():
            raise ValueError("it has no facts of the base model")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the tensor {MARK!r}, which says of what expansion the weights are, is damaged ({type(error).__name__}: "
            f"{error}): copy the file again, or save it again"
        ) from error
    return dict(noted)


def mark_of(path: Path) -> dict[str, Any] | None:
    """Read the mark in a file of weights; None if it has none, or cannot be read."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return None
    with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as file:
        return read_mark(file.get_tensor(MARK)) if MARK in file.keys() else None  # noqa: SIM118 (not a dict)
    return None


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Put parts that were compiled as they were inside the block: torch.compile gives their tensors other names."""
    places = [(parent, name, part) for parent in model.modules() for name, part in parent._modules.items()]
    compiled = [(parent, name, part) for parent, name, part in places if COMPILED in getattr(part, "_modules", ())]
    for parent, name, part in compiled:
        parent._modules[name] = getattr(part, COMPILED)
    try:
        yield
    finally:
        for parent, name, part in compiled:
            parent._modules[name] = part


def _name_as_here(model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give tensors of a save, in place, the names that they have in a model with parts that were compiled."""
    for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        plain = name.replace(f"{COMPILED}.", "")
        if plain != name and prefix + plain in state_dict:
            state_dict[prefix + name] = state_dict.pop(prefix + plain)


def marked_again(mark: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the mark of a file some of whose tensors were replaced by these, by name: with their sums."""
    noted = read_mark(mark)
    sums = {name: byte_sum(tensor) for name, tensor in tensors.items()}
    return marked({**noted, "tensors": {**noted["tensors"], **sums}} if "tensors" in noted else noted)


class Marked(nn.Module):
    """Mixin of an expanded model: it loads no tensors that say that they are of another expansion."""

    control: Any

    def _shaping(self) -> dict[str, Any]:
        settings = {name: getattr(self.control.config, name) for name in SHAPING}
        return {**settings, "expanded_layers": list(self.control.layers)}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save as torch does, and note the settings in the metadata of the state dict."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (metadata := getattr(destination, "_metadata", None)) is not None:
            metadata[prefix[:-1]][MARK] = self._shaping()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any
    ) -> None:
        """Load as torch does. Raises CheckpointError for tensors of another expansion."""
        if found := differences(metadata.get(MARK, {}), self._shaping()):
            raise CheckpointError(
                f"this state dict is of another expansion: {found}. Load it into a model with the same ControlConfig; "
                "load_state_dict(dict(state)) loads the tensors all the same"
            )
        if (mark := state_dict.pop(prefix + MARK, None)) is not None:
            here = description(self)
            here["base"]["rest"] = rest_print(self.control.samples, [name.removeprefix(prefix) for name in state_dict])
            check_mark(mark, here)
        _name_as_here(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


def check_mark(mark: Tensor, here: dict[str, Any]) -> None:
    """Raise CheckpointError if weights are of an expansion that computes something else than the one here.

    Warns if the base has another type, or another name where its weights cannot be compared. here: the model's
    `ctrl.facts.description`.
    """
    there = read_mark(mark)
    if found := _differences(there, here):
        raise CheckpointError(
            f"these weights are of another expansion: {found}. Trainer resumes from a checkpoint of the same base and "
            "ControlConfig: expand the base of that training as it was there, or give resume_from_checkpoint a folder "
            "of this model. ctrl.load(base_model, folder) makes the model that was saved"
        )
    dtypes = [facts["base"]["dtype"] for facts in (there, here)]
    if dtypes[0] != dtypes[1]:
        warn(
            f"these weights were trained on a base in {dtypes[0]}, this one is in {dtypes[1]}, so its outputs are "
            f"others: load the base in {dtypes[0]} to go on with that training",
            stacklevel=3,
        )
    for other in filter(None, (find(there["base"], here["base"]) for find in (other_buffers, other_rows, other_kinds))):
        warn(other, stacklevel=3)
    names = [facts["base"]["name"] for facts in (there, here)]
    if same_base(there["base"], here["base"]) is None and all(names) and names[0] != names[1]:
        warn(
            f"these weights were trained on {names[0]!r}, this base is {names[1]!r}: whether the bases' weights are "
            "the same cannot be seen. If they are not, the copies do not fit",
            stacklevel=3,
        )


def other_buffers(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say that two bases of one type have buffers of different types, or rounded ones; empty if they have not, or it is
    not known."""
    if there.get("dtype") != here["dtype"]:
        return ""
    types: list[Any] = [facts.get("buffers") for facts in (there, here)]
    shown = [", ".join(one or ()) or "none" for one in types]
    if None in types or types[0] == types[1]:
        rounded: list[Any] = [facts.get("rounded") for facts in (there, here)]
        if None in rounded or rounded[0] == rounded[1]:
            return ""
        more = set(rounded[0]) > set(rounded[1])
        shown = [f"{here['dtype']} rounded to a half type", here["dtype"]][:: 1 if more else -1]
    return (
        f"the base in training had RoPE's frequencies, or other buffers, in {shown[0]}, this one in {shown[1]}, so its "
        "outputs are others: model.to(dtype) rounds buffers, from_pretrained(name, dtype=...) does not. Make the base "
        "as in training"
    )


def other_type(trained_on: str | None, model: Any) -> str:
    """Say that the base has another type than in training, and so other outputs; empty if these are the same."""
    if not trained_on or trained_on == str(model.dtype):
        return ""
    if torch.promote_types(getattr(torch, trained_on.removeprefix("torch.")), model.dtype) != model.dtype:
        return (
            f"the model was saved with its base in {trained_on}, this one is in {model.dtype}, which rounds it, so its "
            f"outputs are others. Load the base in {trained_on} to get the model that was saved"
        )
    if not holds_more(model, trained_on):
        return ""
    return (
        f"the model was saved with its base in {trained_on}, this one is in {model.dtype} and holds values that "
        f"{trained_on} rounds, so its outputs are a little different. Load the base in {trained_on} to get the model "
        "that was saved"
    )


def other_kinds(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Say that one of two bases is quantised, or both in different ways or with other values; empty if not, or it is
    not known."""
    found: list[Any] = [facts.get("quantised") for facts in (there, here)]
    prints: list[Any] = [facts.get("packed") for facts in (there, here)]
    if None in found:
        return ""
    if found[0] != found[1]:
        shown = [f"quantised ({', '.join(one)})" if one else "in floats" for one in found]
        return (
            f"the base in training was {shown[0]}, this one is {shown[1]}, so its outputs are others than those of the "
            "copies' training: measure the model as it is now"
        )
    settings: list[Any] = [facts.get("quantisation") for facts in (there, here)]
    if None not in settings and (other := differences(*settings)):
        return f"the base in training was quantised with other settings, so its outputs are others: {other}"
    if None in prints or prints[0] == prints[1]:
        return ""
    return (
        "the quantised weights of this base are not those of the base in training, so its outputs are others: another "
        "revision, merged adapters, or quantised anew by another version or on another device. Load that base"
    )


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    shaping = [{name: facts["control"].get(name) for name in SHAPING} for facts in (there, here)]
    facts = [{k: v for k, v in one["base"].items() if k not in NOTED} for one in (there, here)]
    computed = [one["base"]["computes"] for one in (there, here)]
    pairs = (shaping, facts, computed)
    found = [text for old, new in pairs if (text := differences(old, new))]
    if not found and same_base(there["base"], here["base"]) is False:
        found = [f"the weights of its base, {there['base']['name']!r}, are others than those of this one"]
    return ", ".join(found)

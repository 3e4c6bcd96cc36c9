"""Write and read the folder of `ctrl.save`: `model.safetensors` with the trained tensors and a
mark (`ctrl.mark`), and `control_config.json`.

Its config.json is there for `from_pretrained`: it is no model's, so every class refuses the folder, with the way out in
its message, instead of loading a plain model without the copies. The weights have the name from which Trainer resumes.
README.md is the model card of the Hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ctrl.card import CARD_FILE, card, may_write, model_tags
from ctrl.changes import changed, repacked
from ctrl.errors import CheckpointError, warn
from ctrl.facts import description
from ctrl.fingerprint import rest_print
from ctrl.generation import ends, labels, padding, settings
from ctrl.layer import ADDED, expanded_layers
from ctrl.mark import COMPILED, MARK, mark_of, marked, uncompiled
from ctrl.offloaded import in_memory
from ctrl.quantised import refuse_quantised_copies
from ctrl.sharded import write_once
from ctrl.structure import head_parameters, own_head, refuse_computed_weights
from ctrl.sums import Sums, byte_sum, exact_sums

CONFIG_FILE, WEIGHTS_FILE, REFUSAL_FILE = FILES = ("control_config.json", "model.safetensors", "config.json")
FORMAT = 1
WAY_OUT = "this folder holds a Control LLM expansion, not a model: load it with ctrl.load(base_model, folder)"
# the Auto classes show the type; Llama's and other configs refuse text where a number or a config must be, and show it
REFUSAL = {"model_type": f"control_llm ({WAY_OUT})"}
REFUSAL |= dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "text_config"), WAY_OUT)


def write_checkpoint(model: Any, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None) -> Path:
    """Write the folder of an expanded model that is in no wrapper; see `ctrl.save`."""
    if state_dict is not None:
        state_dict = {name.replace(f".{COMPILED}.", "."): tensor for name, tensor in state_dict.items()}
    with uncompiled(model):
        return _write_checkpoint(model, Path(folder), state_dict)


def _write_checkpoint(model: Any, folder: Path, state_dict: dict[str, Tensor] | None) -> Path:
    refuse_base(folder, model.config._name_or_path)
    copies = [layer.expanded for layer in expanded_layers(model)]
    refuse_computed_weights(copies, "ctrl.save")
    refuse_quantised_copies(copies, model.control.config.expanded == "lora")
    model.state_dict(keep_vars=True)  # makes FSDP reshard what a forward pass has gathered
    sums = exact_sums(model)  # once: they read the whole base
    names = trained_names(model, sums)
    if moved := repacked(model):
        warn(
            f"{len(moved)} quantised weights of the base have changed since it was expanded (first: {moved[0]}), as "
            "merged adapters do. The folder holds floats alone, and ctrl.load needs the base as it was: merge adapters "
            "over a base in floats",
            stacklevel=4,
        )
    state = model.state_dict() if state_dict is None else state_dict
    meta = {"format": FORMAT, **description(model, sums)}
    meta |= {"ends": ends(model), "generation": settings(model), "pad": padding(model), "labels": labels(model)}
    # not of what is saved whole: new rows of embeddings that trained may start with other values in each process
    meta["base"]["sums"] = {name: total for name, total in meta["base"]["sums"].items() if name not in names}
    meta["base"] |= {"rest": rest_print(model.control.samples, names), "own_head": own_head(model) is not None}
    if frozen := _frozen(model, names):
        meta["base"]["frozen"] = frozen
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(
            f"state_dict has no {missing[0]}, but {next(iter(state), 'nothing')}: pass the state dict of the model "
            "itself, not of a wrapper (DDP, torch.compile) and with all that trains, or leave state_dict out"
        )
    trained = in_memory(model, {name: state[name] for name in names})
    write_once(trained, lambda tensors: _write(folder, tensors, meta, model_tags(model)))
    return folder


def refuse_base(folder: Path, base: str) -> None:
    """Raise CheckpointError if the folder is the base's own: its weights and config have the names of ours."""
    if base and (folder / REFUSAL_FILE).is_file() and os.path.realpath(folder) == os.path.realpath(base):
        raise CheckpointError(
            f"{folder} is the folder of the base model, whose weights and config the expansion would replace: choose "
            "another folder"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read `base` (facts of the base model), `control` (the config), `ends`, `generation`, `pad` and `labels` (see
    `ctrl.generation`; None in older folders).

    Without a config it is read from the mark of the weights: Trainer uploads the latter alone in the middle of a
    training. Raises CheckpointError if that fails.
    """
    path = folder / CONFIG_FILE
    mark = None if path.is_file() else mark_of(folder / WEIGHTS_FILE)
    if mark is None and not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}: it is not a folder written by ctrl.save")
    try:
        meta = json.loads(path.read_text()) if mark is None else mark
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {meta['format']}, this version reads {FORMAT}: update ctrl")
        base = meta["base"]
        if not isinstance(base, dict) or "name" not in base or not isinstance(base.get("computes", {}), dict):
            raise ValueError("base has no facts of the base model")
        if "dtype" in base and not isinstance(
            getattr(torch, str(base["dtype"]).removeprefix("torch."), 0), torch.dtype
        ):
            raise ValueError(f"base.dtype {base['dtype']!r} is no dtype of torch")
        known = None if meta.get("ends") is None else [int(end) for end in meta["ends"]]
        given = None if meta.get("generation") is None else {**meta["generation"]}
        return {
            "base": base, "control": meta["control"], "ends": known, "generation": given, "pad": meta.get("pad"),
            "labels": meta.get("labels"),
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a control config ({error!r}): save the model again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file but the mark (`ctrl.mark`).

    Raises CheckpointError if the file is missing, damaged or not this user's to read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: the checkpoint is incomplete, save it again")
    if not os.access(path, os.R_OK):  # safetensors would say that there is no such file
        raise CheckpointError(f"{path} may not be read by this user: change its mode, or ask its owner to")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name != MARK}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): save it again") from error


def check_one_save(folder: Path, meta: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the config of a folder is of another save than its weights, whose mark says what they
    are: a save over an older one that was killed between the two files, or a file that was copied from elsewhere.

    Warns if the tensors are not those that were saved: bits of a file may change, and nothing else would show it.
    meta: of `read_config`. Fields that only one of them has are of an earlier version; the base may have been renamed.
    """
    if (noted := mark_of(folder / WEIGHTS_FILE)) is None:
        return
    lost = dict.fromkeys(noted["control"].keys() - meta["control"].keys())  # a default would take its place
    frozen = [facts["base"].get("frozen") for facts in (meta, noted)]  # a save notes it in both files, or in none
    if frozen[0] != frozen[1]:
        _refuse_two_saves(folder, "base.frozen", *frozen)
    for part, here in (("control", {**lost, **meta["control"]}), ("base", meta["base"])):
        if other := [n for n, v in here.items() if n != "name" and noted[part].get(n, v) != v]:
            _refuse_two_saves(folder, f"{part}.{other[0]}", here[other[0]], noted[part][other[0]])
    stops, others = meta["ends"], noted.get("ends")
    if stops is not None and others is not None and set(stops) != set(others):
        _refuse_two_saves(folder, "ends", stops, others)
    for field in ("generation", "pad", "labels"):
        if None not in (meta[field], noted.get(field)) and meta[field] != noted[field]:
            _refuse_two_saves(folder, field, meta[field], noted[field])
    sums = noted.get("tensors", {})  # earlier versions noted none
    if odd := [name for name, tensor in tensors.items() if name in sums and byte_sum(tensor) != sums[name]]:
        warn(
            f"{len(odd)} tensors of {folder / WEIGHTS_FILE} are not what was saved (first: {odd[0]}): the file is "
            f"damaged, or it was edited. Copy it again; after an edit of your own leave the tensor {MARK!r} out",
            stacklevel=3,
        )


def _refuse_two_saves(folder: Path, field: str, here: Any, there: Any) -> None:
    raise CheckpointError(
        f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} are of two saves: {field} is {here!r} in one, {there!r} in the "
        "other. Save the model again"
    )


def added_names(model: nn.Module) -> list[str]:
    """List the state-dict names that expand added: copies and interpolations."""
    state = model.state_dict(keep_vars=True)  # first: this makes FSDP reshard what a forward pass has gathered
    marks = {id(t) for layer in expanded_layers(model) for t in _added_tensors(layer)}
    added = {id(tensor): name for name, tensor in reversed(state.items()) if id(tensor) in marks}  # tied weights once
    return [name for name, tensor in state.items() if added.get(id(tensor)) == name]


def trained_names(model: nn.Module, sums: Sums | None = None) -> list[str]:
    """List the state-dict names that training may have changed.

    They are all that expand added, what else is unfrozen, a head that is new, and what else is no longer as it was
    (merged adapters). sums: as of `changed`.
    """
    added = set(added_names(model))
    moved = {id(parameter) for parameter in (*changed(model, sums=sums), *head_parameters(model).values())}
    state = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}  # torch.ao keeps others too
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if name in added or tensor.requires_grad or id(tensor) in moved:
            first.setdefault(id(tensor), name)  # tied weights once
    return list(first.values())


def _frozen(model: Any, names: list[str]) -> list[str]:
    """List those of `trained_names` that no longer train, and that would after a load: merged adapters, parts of the
    base that were frozen again, parts of copies unless all of what expand trains is frozen (as to use the model)."""
    state, own = model.state_dict(keep_vars=True), model.control.trained
    added = set(added_names(model))
    if any(state[name].requires_grad for name in added & own):
        added -= own
    return [name for name in names if name not in added and not state[name].requires_grad]


def _added_tensors(layer: Any) -> list[Tensor]:
    """List the tensors of copy and interpolation, without those that a low-rank copy shares with its original.

    These are found by name: if accelerate offloads them, they are no longer one object.
    """
    names = [name for name, _ in layer.named_parameters(remove_duplicate=False) if not name.startswith(ADDED)]
    shared = names if layer.control.config.expanded == "lora" else []
    copied = layer.expanded.named_parameters(remove_duplicate=False)
    added = [tensor for name, tensor in copied if name.replace(".base_layer", "") not in shared]
    gate = () if layer.interpolation is None else (*layer.interpolation.parameters(), *layer.interpolation.buffers())
    buffers = [buffer for name, buffer in layer.expanded.named_buffers() if ".base_layer." not in name]
    return [*added, *buffers, *gate]


def _write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], tags: Sequence[str]) -> None:
    tensors = {**tensors, MARK: marked({**meta, "tensors": {name: byte_sum(t) for name, t in tensors.items()}})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        for name, values in ((REFUSAL_FILE, REFUSAL), (CONFIG_FILE, meta)):
            _replace(folder / name, lambda path, values=values: path.write_text(json.dumps(values, indent=2) + "\n"))
        if may_write(folder / CARD_FILE):
            text = card(meta["base"], meta["control"], tags)
            _replace(folder / CARD_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
        raise CheckpointError(
            f"cannot save {size:.0f} MB to {folder}: {error}. Free space or choose another folder"
        ) from error


def _replace(path: Path, write: Any) -> None:
    """Write a temporary file, then rename it: a full disk or a kill leaves the old file intact."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""The kinds of models that can be measured: how a folder of each is recognised, checked and loaded. One table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import ctrl
from ctrl.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_config
from ctrl.facts import base_facts
from experiments.common.errors import ConfigError
from experiments.common.files import read_json, read_note
from experiments.measure.base import FACTS, Base, whole_facts
from experiments.measure.config import SEVERAL
from experiments.measure.files import CONFIG, check_file, check_weights, weights_in
from experiments.methods.reference import REDRAWN
from experiments.methods.saving import ADAPTER_CONFIG, load_onto

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Kind:
    """A kind of model. whole: it holds all weights, and not what was changed of the base.

    found: whether a folder is of this kind. facts: FACTS of the model. check: raises ConfigError before weights are
    read. load: returns the model, loaded as the base says; a base is loaded for it if it is not whole.
    """

    name: str
    whole: bool
    found: Callable[[Path], bool]
    facts: Callable[[Path, Base], dict[str, Any]]
    check: Callable[[Path, Base], None]
    load: Callable[[Path, Base], PreTrainedModel]


def kind_of(folder: Path) -> Kind:
    """Look up the kind of a folder. Raises ConfigError if it is of none."""
    for kind in KINDS:
        if kind.found(folder):
            return kind
    files = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    known = "; ".join(f"{kind.name}: {file}" for kind, file in zip(KINDS, MARKS, strict=True))
    raise ConfigError(f"{folder} is no model: it has no {CONFIG}, but {files}. Known kinds by their files: {known}")


def check_base_fingerprint(folder: Path, model: PreTrainedModel, base: Base) -> None:
    """Raise ConfigError if an expansion was trained on other weights than those of the loaded base."""
    from ctrl.fingerprint import fingerprint, part_prints, same_base

    here = {**base_facts(model), "fingerprint": fingerprint(model), "part_prints": part_prints(model)}
    if same_base(read_config(folder)["base"], here) is False and not base.allow_other:
        raise ConfigError(
            f"{folder} was trained on another base than {base.name}: the weights differ. Name its own as --base, or "
            "vouch for this one with --allow-other-base"
        )


def _expansion_facts(folder: Path, base: Base) -> dict[str, Any]:
    return {**base.facts, **{name: value for name, value in _saved(folder).items() if name in FACTS}}


def _check_expansion(folder: Path, base: Base) -> None:
    _check_one_device(folder, base)
    check_file(folder / WEIGHTS_FILE)
    wrong = [n for n, here in base.facts.items() if _saved(folder).get(n, here) != here]
    if wrong:
        there = ", ".join(f"{name} {_saved(folder)[name]} there, {base.facts[name]} here" for name in wrong)
        raise ConfigError(f"{folder} was trained on {_saved(folder)['name']!r}, --base is {base.name!r}: {there}")


def _check_one_device(folder: Path, base: Base) -> None:
    if base.loading.get("device_map") in SEVERAL:
        raise ConfigError(
            f"{folder} is an expansion, which is loaded on one device: --device-map {base.loading['device_map']} is "
            "for models over several; leave it out, or name a device, such as cuda:0"
        )


def _check_published(folder: Path, base: Base) -> None:
    _check_one_device(folder, base)
    check_weights(folder)


def _saved(folder: Path) -> dict[str, Any]:
    """Return the facts of the base that a folder of `ctrl.save` notes."""
    try:
        saved: dict[str, Any] = read_config(folder)["base"]
    except ctrl.CheckpointError as error:
        raise ConfigError(str(error)) from error
    return saved


def _check_adapter(folder: Path, base: Base) -> None:
    """Raise ConfigError if the adapter's base has another name, or if its matrices do not fit the weights here."""
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(
            f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS[0]}: half a checkpoint, save it again"
        )
    check_file(file)
    values = read_json(folder / ADAPTER_CONFIG)
    if values.get("num_virtual_tokens"):  # they shift the positions of the text, and PEFT passes over those it is given
        raise ConfigError(
            f"{folder} is an adapter of virtual tokens ({values.get('peft_type')}), which are read before each text: "
            "its tokens cannot be scored as the base's are. Measure an adapter of weights, such as LoRA"
        )
    if (start := str(values.get("init_lora_weights"))).startswith(REDRAWN):
        raise ConfigError(
            f"{folder} was trained from the start {start!r}, which took a part out of the base's weights, and PEFT "
            "takes out another one when it loads the adapter: it would be another model. Save it as a plain adapter: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    _check_shapes(file, base)
    named = str(values.get("base_model_name_or_path") or "")
    known = {Path(name).name.casefold() for name in (base.name, str(base.folder))}
    if named and Path(named).name.casefold() not in known and not base.allow_other:
        raise ConfigError(
            f"{folder} is an adapter of {named!r}, --base is {base.name!r}: name the adapter's base, or vouch with "
            "--allow-other-base that they have the same weights"
        )
    if named and not base.allow_other and (other := _other_weights(Path(named).expanduser(), base.folder)):
        raise ConfigError(
            f"{folder} is an adapter of {named!r}, whose {other} is another file than that of --base {base.name!r}: "
            "name the adapter's base, or vouch with --allow-other-base that they have the same weights"
        )


def _other_weights(named: Path, folder: Path) -> str:
    """Return a file of weights that two folders have, but not the same one; nothing if there is none.

    Folders of one name, such as run-1/model and run-2/model, may hold any two models.
    """
    if not named.is_dir() or named.resolve() == folder.resolve():
        return ""
    there, here = weights_in(named), weights_in(folder)
    return next((name for name in sorted(there.keys() & here.keys()) if there[name] != here[name]), "")


def _check_shapes(file: Path, base: Base) -> None:
    if file.suffix != ".safetensors":
        return  # PEFT checks it when it loads
    from safetensors import safe_open

    shapes = {name: tuple(p.shape) for name, p in base.skeleton().named_parameters()}
    stacked = {name.rpartition(".")[0] for name, shape in shapes.items() if len(shape) > 2}  # experts
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a dict)
            module, _, part = key.removeprefix("base_model.model.").partition(".lora_")
            if part not in ("A.weight", "B.weight") or any(f"{module}.".startswith(f"{one}.") for one in stacked):
                continue
            own = tensors.get_slice(key).get_shape()
            if len(own) < 2:
                raise ConfigError(f"{file}: {key} has the shape {own}, and is no matrix: save the adapter again")
            size = own[1 if part == "A.weight" else 0]
            if size not in (there := shapes.get(f"{module}.weight", ())):
                here = f"of shape {there}" if there else "missing"
                raise ConfigError(f"{file}: {key} is for {size} features, but in {base.name} {module} is {here}")


def _published_facts(folder: Path, base: Base) -> dict[str, Any]:
    values = read_json(folder / CONFIG)
    layers = values["expansion"].get("num_ori_layers", base.facts["num_hidden_layers"])
    own = {name: values.get(name, base.facts[name]) for name in FACTS}
    return {**own, "num_hidden_layers": layers, "model_type": values.get("base_model_type", base.facts["model_type"])}


def _load_expansion(folder: Path, base: Base) -> PreTrainedModel:
    model = base.load()
    check_base_fingerprint(folder, model, base)
    return ctrl.load(model, folder, allow_other_base=base.allow_other)


def _is_published(folder: Path) -> bool:
    return isinstance(read_note(folder / CONFIG).get("expansion"), dict)


def _check_whole(folder: Path, base: Base) -> None:
    check_weights(folder)
    whole_facts(folder, base.remote_code)


def _base_facts(folder: Path, base: Base) -> dict[str, Any]:
    return base.facts


MARKS = (CONFIG_FILE, ADAPTER_CONFIG, f"{CONFIG} with `expansion`", CONFIG)
KINDS = (
    Kind(
        "folder of ctrl.save",
        False,
        lambda folder: (folder / CONFIG_FILE).is_file(),
        _expansion_facts,
        _check_expansion,
        _load_expansion,
    ),
    Kind(
        "PEFT adapter",
        False,
        lambda folder: (folder / ADAPTER_CONFIG).is_file(),
        _base_facts,
        _check_adapter,
        lambda folder, base: load_onto(base.load(), folder),  # not merged: in bf16 that would round the adapter away
    ),
    Kind(
        "published Control LLM checkpoint",
        False,
        _is_published,
        _published_facts,
        _check_published,
        lambda folder, base: base.place(ctrl.load_published(folder)),
    ),
    Kind(
        "model",
        True,
        lambda folder: (folder / CONFIG).is_file(),
        lambda folder, base: whole_facts(folder, base.remote_code),
        _check_whole,
        lambda folder, base: base.load(folder),
    ),
)

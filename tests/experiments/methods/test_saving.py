"""Trained weights load onto the base that they are of, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.mark import MARK
from experiments.common.errors import DamagedError
from experiments.common.files import read_json, write_json
from experiments.methods.saving import (
    BASE,
    check_same_base,
    facts_of,
    load_onto,
    round_files,
    save_trained,
    write_facts,
)
from tests.helpers import families
from tests.helpers.byte_level import byte_llama
from tests.helpers.families import perturb
from tests.helpers.hostile import Ran

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CHANGES: dict[str, tuple[Change, str]] = {
    "other names": (lambda t: {f"x.{k}": v for k, v in t.items()}, r"of this arm and base model.* are unknown"),
    "one name more": (lambda t: t | {"x": torch.ones(2)}, r"\['x'\] are unknown"),
    "another shape": (lambda t: {k: v[:-1] for k, v in t.items()}, r"does not fit the base model .*size mismatch"),
    "nothing": (lambda t: {}, r"are missing"),
}


def save(folder: Path, whole: bool, tied: bool = False) -> Path:
    """Save a disturbed model: all of it, or one layer."""
    model = byte_llama(260, tie_word_embeddings=tied)
    write_facts(folder, facts_of(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whole or ".layers.1." in name)
        with torch.no_grad():
            parameter.add_(0.1)
    return save_trained(model, folder) / "model.safetensors"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_something_else_are_refused(tmp_path: Path, whole: bool, change: str) -> None:
    file, (apply, said) = save(tmp_path, whole), CHANGES[change]
    save_file(apply(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=said):
        load_onto(byte_llama(260), tmp_path)


def test_a_whole_model_lacks_no_tensor(tmp_path: Path) -> None:
    file = save(tmp_path, whole=True)
    save_file({k: v for k, v in load_file(file).items() if "norm" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"input_layernorm.* are missing: bring it back, or delete the arm's folder"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("data", [b"", bytes(2000), b"x"], ids=["empty", "NUL", "cut"])
def test_a_file_that_is_no_safetensors(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, whole=True).write_bytes(data)
    with pytest.raises(DamagedError, match=r"model\.safetensors does not fit the base model \(.*header"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_what_was_saved_loads(tmp_path: Path, whole: bool, tied: bool) -> None:
    save(tmp_path, whole, tied)
    base = byte_llama(260, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in base.named_parameters()}
    for name, value in load_onto(base, tmp_path).named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1 * (whole or ".layers.1." in name))


def trained_on(base: PreTrainedModel, folder: Path, kind: str) -> None:
    """Write what an arm trained, and the facts of its base."""
    facts = facts_of(base)
    if kind == "lora":
        save_trained(get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj"])), folder)  # type: ignore[arg-type]
    else:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(kind == "full" or ".layers.1." in name)
        save_trained(base, folder)
    write_facts(folder, facts)


def with_one_layer_moved(base: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        base.get_parameter("model.layers.0.mlp.down_proj.weight").add_(0.1)
    return base


OTHER_BASES = {
    "one layer": (lambda: with_one_layer_moved(byte_llama(260)), "its weights are others"),
    "another config": (lambda: byte_llama(260, rms_norm_eps=1e-3), "computes is "),
    "more layers": (lambda: byte_llama(260, num_hidden_layers=4), "num_hidden_layers is 2 there, 4 here"),
}


@pytest.mark.parametrize("kind", ["lora", "partial"])
@pytest.mark.parametrize("other", OTHER_BASES)
def test_a_part_is_not_loaded_onto_another_base(tmp_path: Path, kind: str, other: str) -> None:
    trained_on(byte_llama(260), tmp_path, kind)
    make, said = OTHER_BASES[other]
    with pytest.raises(DamagedError, match=rf"was trained on the base model .* another one: {said}.*Bring back the"):
        load_onto(make(), tmp_path)
    load_onto(byte_llama(260), tmp_path)
    load_onto(byte_llama(260).bfloat16(), tmp_path)  # as on a machine with another precision


@pytest.mark.parametrize("kind", ["lora", "partial"])
def test_a_part_of_an_earlier_version_is_loaded_with_a_warning(tmp_path: Path, kind: str) -> None:
    """It kept no facts of its base; a whole model needs none."""
    trained_on(byte_llama(260), tmp_path, kind)
    (tmp_path / BASE).unlink()
    said = r"was trained on an unknown model, .* cannot be seen \(no digest .* delete the arm's folder and run the same"
    with pytest.warns(UserWarning, match=said):
        load_onto(with_one_layer_moved(byte_llama(260)), tmp_path)


def test_an_adapter_names_its_base_itself(tmp_path: Path) -> None:
    """As one that another library trained."""
    trained_on(byte_llama(260), tmp_path, "lora")
    (tmp_path / BASE).unlink()
    values = read_json(tmp_path / "adapter_config.json") | {"base_model_name_or_path": "org/one"}
    write_json(tmp_path / "adapter_config.json", values)
    base = byte_llama(260)
    base.config._name_or_path = "folder/one"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*cannot be seen")
        load_onto(base, tmp_path)
    other = byte_llama(260)
    other.config._name_or_path = "other/two"
    with pytest.warns(UserWarning, match="was trained on org/one, and is loaded onto other/two"):
        load_onto(other, tmp_path)


ADAPTERS: dict[str, tuple[Change, str]] = {
    "other names": (lambda t: {f"x.{k}": v for k, v in t.items()}, "missing adapter keys"),
    "half": (lambda t: dict(list(t.items())[:2]), "missing adapter keys"),
    "nothing": (lambda t: {}, "missing adapter keys"),
    "surplus": (
        lambda t: t | {k.replace("layers.0", "layers.9"): v.clone() for k, v in t.items()},
        "no place for .*layers.9",
    ),
    "another shape": (lambda t: {k: v[:1] for k, v in t.items()}, "size mismatch"),
}


@pytest.mark.parametrize("change", ADAPTERS)
def test_an_adapter_of_something_else_is_refused(tmp_path: Path, change: str) -> None:
    trained_on(byte_llama(260), tmp_path, "lora")
    file, (apply, said) = tmp_path / "adapter_model.safetensors", ADAPTERS[change]
    save_file(apply(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=rf"does not fit the base model \(.*{said}.*: bring it back, or delete"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("data", [b"", bytes(2000), b"x"], ids=["empty", "NUL", "cut"])
def test_a_damaged_adapter_is_refused(tmp_path: Path, data: bytes) -> None:
    trained_on(byte_llama(260), tmp_path, "lora")
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="does not fit the base model"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("kind", ["code", "empty", "no tensors", "cut"])
def test_an_adapter_that_is_pickled_runs_no_code(tmp_path: Path, kind: str) -> None:
    trained_on(byte_llama(260), tmp_path, "lora")
    (tmp_path / "adapter_model.safetensors").unlink()
    file, ran = tmp_path / "adapter_model.bin", tmp_path / "ran"
    torch.save({"a": Ran(ran)} if kind == "code" else [1], file)
    if kind in ("empty", "cut"):
        file.write_bytes(file.read_bytes()[: 0 if kind == "empty" else 100])
    with pytest.raises(DamagedError, match="does not fit the base model") as found:
        load_onto(byte_llama(260), tmp_path)
    assert not ran.exists()
    assert "weights_only" not in str(found.value)  # with which torch would run it


def test_a_whole_model_needs_no_certain_base(tmp_path: Path) -> None:
    trained_on(byte_llama(260), tmp_path, "full")
    load_onto(with_one_layer_moved(byte_llama(260)), tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_the_config_of_the_base_is_that_of_the_training(tmp_path: Path, whole: bool) -> None:
    """A whole model brings its weights along, but what they compute is up to the base's config."""
    save(tmp_path, whole)
    with pytest.raises(DamagedError, match=r"is another one: .*rms_norm_eps.* Bring back the base model"):
        load_onto(byte_llama(260, rms_norm_eps=0.5), tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_a_change_of_weights_is_one_of_its_own_base(tmp_path: Path, whole: bool) -> None:
    """A whole model loads onto any base of its shapes, but what is added to a base is its change since its own."""
    base = byte_llama(260)
    check_same_base(base, tmp_path)  # nothing is known
    save(tmp_path, whole)
    check_same_base(base, tmp_path)
    with torch.no_grad():
        next(base.parameters()).add_(0.1)
    with pytest.raises(DamagedError, match=r"its weights are others .*Bring back the base model of the training"):
        check_same_base(base, tmp_path)


@pytest.mark.parametrize("kind", ["whole", "part", "control", "adapter"])
def test_kept_matrices_are_rounded_and_load(tmp_path: Path, kind: str) -> None:
    """Norms and alphas stay as they are. The file is still marked as of this expansion, and not called damaged."""
    base = byte_llama(260)
    write_facts(tmp_path, facts_of(base))
    if kind == "control":
        model = ctrl.expand(base, ctrl.ControlConfig(layers=2, alpha="learned"))
        perturb(model)
    elif kind == "adapter":
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))  # type: ignore[arg-type]
    else:
        model = base.requires_grad_(kind == "whole")
        model.model.layers[1].requires_grad_(True)
    save_trained(model, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    before = load_file(file)
    round_files(tmp_path, "fp32")
    assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {torch.float32}
    round_files(tmp_path, "bf16")
    after = load_file(file)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    for name, tensor in before.items():
        wide = tensor.dtype == torch.float32 and tensor.dim() > 1
        assert name == MARK or torch.equal(after[name], tensor.bfloat16() if wide else tensor)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not what was saved")
        found = dict(load_onto(byte_llama(260), tmp_path).named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name].data, parameter.data, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_whole_model_whose_tensors_have_other_names_on_the_hub_loads(tmp_path: Path, dtype: str) -> None:
    """transformers writes experts one by one, and holds them stacked."""
    model = families.build("mixtral").requires_grad_(True)
    write_facts(tmp_path, facts_of(model))
    perturb(model)
    save_trained(model, tmp_path)
    round_files(tmp_path, dtype)
    assert not load_file(tmp_path / "model.safetensors").keys() <= model.state_dict().keys()
    found = load_onto(families.build("mixtral"), tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0 if dtype == "fp32" else 2**-8, atol=0)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "strange": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match="are unknown"):
        load_onto(families.build("mixtral"), tmp_path)

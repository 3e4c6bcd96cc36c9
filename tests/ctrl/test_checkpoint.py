"""The folder of a saved model: trained tensors only, damage named, never half written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch.nn.utils import prune, weight_norm
from transformers import LlamaForCausalLM

import ctrl
from ctrl.checkpoint import FILES, read_tensors
from ctrl.layer import expanded_layers
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def test_holds_only_trained_tensors_and_no_pickle(tmp_path: Path) -> None:
    model = disturbed()
    ctrl.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", *sorted(FILES)]
    assert all(".expanded." in n or ".interpolation." in n for n in read_tensors(tmp_path / "model.safetensors"))


def test_low_rank_checkpoints_hold_no_pretrained_weight(tmp_path: Path) -> None:
    ctrl.save(disturbed(expanded="lora"), tmp_path)
    assert not [n for n in read_tensors(tmp_path / "model.safetensors") if "base_layer" in n]


def test_the_state_dict_of_a_wrapper_is_refused(tmp_path: Path) -> None:
    model = disturbed()
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ctrl.CheckpointError, match=r"state_dict has no model\.layers.*, but _orig_mod\.model.*wrapper"):
        ctrl.save(model, tmp_path, wrapped)
    ctrl.save(model, tmp_path, model.state_dict())


def test_damage_is_named(tmp_path: Path) -> None:
    model = disturbed()
    with pytest.raises(ctrl.CheckpointError, match=r"no control_config\.json"):
        ctrl.load(tiny(), tmp_path)
    ctrl.save(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ctrl.CheckpointError, match="cut short"):
        ctrl.load(tiny(), tmp_path)
    weights.unlink()
    with pytest.raises(ctrl.CheckpointError, match="does not exist: the checkpoint is incomplete"):
        ctrl.load(tiny(), tmp_path)
    config = json.loads((tmp_path / "control_config.json").read_text())
    (tmp_path / "control_config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ctrl.CheckpointError, match="format 99"):
        ctrl.load(tiny(), tmp_path)
    (tmp_path / "control_config.json").write_text("{")
    with pytest.raises(ctrl.CheckpointError, match="not a control config"):
        ctrl.load(tiny(), tmp_path)


def test_weights_of_which_bits_changed_are_said(tmp_path: Path) -> None:
    """A disk, or a machine that lost power, may do that: the file still opens."""
    ctrl.save(disturbed(), tmp_path)
    path = tmp_path / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load(tiny(), tmp_path)
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # of the first tensor, after the header
    path.write_bytes(data)
    with pytest.warns(
        UserWarning, match=r"1 tensors of .* are not what was saved .first: model.*: the file is damaged"
    ):
        ctrl.load(tiny(), tmp_path)
    tensors = {name: 2 * tensor for name, tensor in read_tensors(path).items()}  # without the mark
    save_file(tensors, path, metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load(tiny(), tmp_path)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = disturbed()
    ctrl.save(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def no_space(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctrl.checkpoint.save_file", no_space)
    with pytest.raises(ctrl.CheckpointError, match=r"No space left on device\. Free space"):
        ctrl.save(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("how", [weight_norm, lambda module: prune.l1_unstructured(module, "weight", 0.5)])
def test_copies_whose_weights_are_computed_are_not_saved(how: Any, tmp_path: Path) -> None:
    """The file would hold their parts, under names that no fresh copy has."""
    model = disturbed()
    how(expanded_layers(model)[0].expanded.mlp.up_proj)
    with pytest.raises(ctrl.ConfigError, match=r"ctrl.save cannot copy .* mlp.up_proj, whose weight is computed"):
        ctrl.save(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "save", [ctrl.save, lambda model, folder: model.save_pretrained(folder), ctrl.export_published]
)
def test_the_folder_of_the_base_is_not_overwritten(save: Any, tmp_path: Path) -> None:
    """Its files have the same names: the base would be lost, and the expansion with it."""
    tiny().save_pretrained(tmp_path / "base")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    model = ctrl.expand(LlamaForCausalLM.from_pretrained(tmp_path / "base"), ctrl.ControlConfig(layers=1))
    for folder in ("base", "link"):
        with pytest.raises(ctrl.CheckpointError, match="is the folder of the base model"):
            save(model, tmp_path / folder)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    ctrl.save(model, tmp_path / "base" / "expansion")
    ctrl.load(tmp_path / "base", tmp_path / "base" / "expansion")


@pytest.mark.parametrize("what", ["control", "base"])
def test_a_save_that_was_killed_between_two_files_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are new, the config is the old one: the same tensors would compute something else."""
    one = {"interpolation": "lerp"} if what == "control" else {}
    ctrl.save(disturbed(**one), tmp_path)
    old = (tmp_path / "control_config.json").read_text()
    other = {"interpolation": "slerp"} if what == "control" else {}
    model = disturbed(**other)
    if what == "base":
        model.control.fingerprint = "of another base"
    ctrl.save(model, tmp_path)
    new = (tmp_path / "control_config.json").read_text()
    (tmp_path / "control_config.json").write_text(old)
    base = tiny().eval()
    with pytest.raises(ctrl.CheckpointError, match=rf"are of two saves: {what}\.\w+ is .*Save the model again"):
        ctrl.load(base, tmp_path)
    assert type(base) is type(tiny())
    if what == "control":
        (tmp_path / "control_config.json").write_text(new)
        assert ctrl.load(base, tmp_path)(IDS).logits.isfinite().all()


@pytest.mark.parametrize("what", ["ends", "base.frozen", "generation"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_two_saves_of_one_expansion_differ_in_is_compared_too(what: str, first: int, tmp_path: Path) -> None:
    """Where generation stops, its settings, and what does not train: of a later save into the same folder."""
    model, config = disturbed(), []
    for one in (first, 1 - first):
        model.generation_config.eos_token_id = [7, 9] if one and what == "ends" else 2
        model.generation_config.repetition_penalty = 1.8 if one and what == "generation" else None
        frozen = one == 1 and what == "base.frozen"
        expanded_layers(model)[0].expanded.mlp.requires_grad_(not frozen)
        ctrl.save(model, tmp_path)
        config.append((tmp_path / "control_config.json").read_text())
    (tmp_path / "control_config.json").write_text(config[0])
    with pytest.raises(ctrl.CheckpointError, match=rf"are of two saves: {what} is .*Save the model again"):
        ctrl.load(tiny(), tmp_path)

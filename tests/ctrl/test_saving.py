"""Save and load: only what trained, refused by from_pretrained, clear about every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import ctrl
from ctrl.saving import read_tensors
from tests.ctrl.test_merge import IDS, disturbed
from tests.ctrl.test_trainer import tiny


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"structure": "stack"},
        {"structure": "hybrid"},
        {"interpolation": "dlerp", "alpha": "learned"},
        {"interpolation": "moe"},
        {"interpolation": "plerp"},
        {"norm_mix": 0.2},
        {"expanded": "lora"},
    ],
)
def test_reloaded_equals_saved(tmp_path: Path, kwargs: dict[str, object]) -> None:
    model = disturbed(**kwargs)
    ctrl.save(model, tmp_path)
    again = ctrl.load(tiny().eval(), tmp_path)
    assert again.control.config == model.control.config
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.equal(again(IDS).logits, tiny().eval()(IDS).logits)


def test_holds_only_trained_tensors_and_no_pickle(tmp_path: Path) -> None:
    model = disturbed()
    ctrl.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["control_config.json", "model.safetensors"]
    assert all(".expanded." in n or ".interpolation." in n for n in read_tensors(tmp_path / "model.safetensors"))


def test_low_rank_checkpoints_hold_no_pretrained_weight(tmp_path: Path) -> None:
    ctrl.save(disturbed(expanded="lora"), tmp_path)
    assert not [n for n in read_tensors(tmp_path / "model.safetensors") if "base_layer" in n]


def test_what_else_was_unfrozen_is_saved_too(tmp_path: Path) -> None:
    model = disturbed()
    model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path)  # the method every trainer calls writes ctrl's format
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path)(IDS).logits, model(IDS).logits)


def test_load_takes_a_base_by_folder(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "base")
    model = disturbed()
    ctrl.save(model, tmp_path / "trained")
    again = ctrl.load(str(tmp_path / "base"), tmp_path / "trained").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_from_pretrained_refuses_the_folder(tmp_path: Path) -> None:
    ctrl.save(disturbed(), tmp_path)
    with pytest.raises((OSError, ValueError), match=r"config\.json|model_type"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


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
    with pytest.raises(ctrl.CheckpointError, match="not saved to its end"):
        ctrl.load(tiny(), tmp_path)
    config = json.loads((tmp_path / "control_config.json").read_text())
    (tmp_path / "control_config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ctrl.CheckpointError, match="format 99"):
        ctrl.load(tiny(), tmp_path)
    (tmp_path / "control_config.json").write_text("{")
    with pytest.raises(ctrl.CheckpointError, match="not a control config"):
        ctrl.load(tiny(), tmp_path)


def test_wrong_base_and_wrong_tensors_are_named(tmp_path: Path) -> None:
    ctrl.save(disturbed(), tmp_path)
    meta = json.loads((tmp_path / "control_config.json").read_text())
    other = meta | {"base": meta["base"] | {"hidden_size": 4096}}
    (tmp_path / "control_config.json").write_text(json.dumps(other))
    with pytest.raises(ctrl.CheckpointError, match="hidden_size 4096 there, 32 here"):
        ctrl.load(tiny(), tmp_path)
    wider = meta | {"control": meta["control"] | {"layers": 4}}
    (tmp_path / "control_config.json").write_text(json.dumps(wider))
    with pytest.raises(ctrl.CheckpointError, match="missing tensors"):
        ctrl.load(tiny(), tmp_path)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = disturbed()
    ctrl.save(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def no_space(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctrl.saving.save_file", no_space)
    with pytest.raises(ctrl.CheckpointError, match=r"No space left on device\. Free space"):
        ctrl.save(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_plain_models_are_refused(tmp_path: Path) -> None:
    for use in (ctrl.describe, ctrl.merge_back, lambda m: ctrl.save(m, tmp_path)):
        with pytest.raises(ctrl.ConfigError, match=r"is not expanded: call ctrl\.expand"):
            use(tiny())
    with pytest.raises(ctrl.ConfigError, match="expanded already"):
        ctrl.expand(disturbed())

"""The parts of an expansion, taken off a model and put on again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModel

import ctrl
from ctrl.expansion import put_on, take_off
from tests.helpers.tiny_llama import IDS, disturbed, eager, expanded, sequences, tiny
from tests.helpers.trainers import hf_trainer


@pytest.mark.parametrize("settings", [{}, {"structure": "hybrid"}, {"divergence": "attention"}])
def test_parts_are_put_back_as_they_were(settings: dict[str, Any]) -> None:
    model: Any = eager() if "divergence" in settings else expanded(**settings)
    expected, names = model.train()(IDS, labels=IDS), [name for name, _ in model.named_parameters()]
    expansion = take_off(model)
    assert [part.kind for part in expansion.parts][-1] == "concat"
    assert "parts" not in repr(expansion)  # whole layers
    for _ in range(2):  # the same parts, as often as one likes
        put_on(model, expansion)
        assert [name for name, _ in model.named_parameters()] == names
        assert torch.equal(model(IDS, labels=IDS).loss, expected.loss)
        assert take_off(model).control is expansion.control
    assert not any(module._forward_hooks for module in model.modules())


def test_parts_follow_the_mode_and_the_device_of_their_layers() -> None:
    model: Any = expanded()
    expansion = take_off(model)
    put_on(model.eval().to("meta"), expansion)
    assert not any(module.training for module in model.modules())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("moved", [lambda expansion: expansion, copy.deepcopy])
@pytest.mark.parametrize("implementations", [("eager", "sdpa"), ("sdpa", "eager")])
def test_copies_compute_attention_as_the_base_that_they_are_put_on(moved: Any, implementations: Any) -> None:
    """Eager copies below a mask that was left out for sdpa would see the tokens to come."""
    model, base = disturbed(), tiny().eval()
    expected = model(IDS).logits
    for one, implementation in zip((model, base), implementations, strict=True):
        one.set_attn_implementation(implementation)
    put_on(base, moved(take_off(model)))
    torch.testing.assert_close(base(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    base.set_attn_implementation(implementations[0])
    attention: Any = base.get_submodule("model.layers.3.expanded.self_attn")
    assert attention.config._attn_implementation == implementations[0]
    torch.testing.assert_close(base(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_low_rank_copies_share_the_weights_of_the_base_that_they_are_put_on(tmp_path: Path) -> None:
    """What is saved holds adapters alone, so it has to compute with this base's weights."""
    base: Any = tiny(seed=7).eval()
    ctrl.swap(base, copy.deepcopy(take_off(disturbed(expanded="lora"))), allow_other_base=True)
    layer = base.model.layers[3]
    for name, parameter in layer.expanded.named_parameters():
        if "lora_" not in name:
            assert parameter is layer.get_parameter(name.replace(".base_layer", "")), name
    ctrl.save(base, tmp_path)
    loaded = ctrl.load(tiny(seed=7).eval(), tmp_path, allow_other_base=True)
    assert torch.equal(loaded(IDS).logits, base(IDS).logits)


def test_a_hook_of_accelerate_runs_the_forward_of_the_new_class() -> None:
    model: Any = expanded().eval()
    expected = model(IDS).logits
    expansion = take_off(model)
    for module in (model, *model.model.layers):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    plain = model(IDS).logits
    put_on(model, expansion)
    assert torch.equal(model(IDS).logits, expected)
    take_off(model)
    assert torch.equal(model(IDS).logits, plain)


def test_models_that_share_a_config_are_stripped_one_by_one(tmp_path: Any) -> None:
    """Trainer.predict of the one that is still expanded returns logits alone."""
    before = list(tiny().config.keys_to_ignore_at_inference)
    first, second = tiny(), tiny()
    second.config = first.config
    for model in (first, second):
        ctrl.expand(model, ctrl.ControlConfig(layers=2))
    for model, fields in ((first, 2), (second, 1)):
        predicted = hf_trainer(model, tmp_path).predict(sequences()).predictions  # type: ignore[arg-type]
        assert predicted.shape == (8, 17, 96)
        assert model.config.keys_to_ignore_at_inference.count("divergence") == fields
        take_off(model)
    assert second.config.keys_to_ignore_at_inference == before
    assert "keys_to_ignore_at_inference" not in second.config.to_dict()


def test_the_decoder_alone_is_not_saved_as_if_it_had_no_copies(tmp_path: Path) -> None:
    model: Any = disturbed()
    with pytest.raises(ctrl.ConfigError, match="load without its copies: call save_pretrained of the whole model"):
        copy.deepcopy(model).base_model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    merged: Any = ctrl.merge_back(model)
    merged.base_model.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(IDS).last_hidden_state, merged.base_model(IDS).last_hidden_state)
    reference: Any = ctrl.reference(model)
    reference.base_model.save_pretrained(tmp_path / "base")
    ctrl.unload(model)
    model.base_model.save_pretrained(tmp_path / "base")

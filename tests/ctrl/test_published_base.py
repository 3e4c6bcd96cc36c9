"""The base of a published checkpoint: its config is compared, settings of generation and the mode are as usual."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

import ctrl
from ctrl.published_base import GENERATION_FILE
from tests.helpers.architectures import build
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, disturbed, tiny

ENDS = [5, 7]


def ending(model: PreTrainedModel) -> PreTrainedModel:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ENDS  # type: ignore[attr-defined]
    return model


def scaled(rope: dict[str, Any]) -> Any:
    config: Any = tiny().config
    config.rope_parameters = rope
    return LlamaForCausalLM(config)


def ends(model: PreTrainedModel) -> object:
    return model.generation_config.eos_token_id  # type: ignore[union-attr]


@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_settings_of_generation_and_eval_mode_come_back(structure: str, tmp_path: Path) -> None:
    model = ending(disturbed(structure=structure))
    ctrl.export_published(model, tmp_path)
    again = ctrl.load_published(tmp_path)
    assert not again.training
    assert ends(again) == ENDS
    (tmp_path / GENERATION_FILE).unlink()
    assert ends(ctrl.load_published(tmp_path, base=tiny().model)) != ENDS  # without a head it has no such settings
    assert ends(ctrl.load_published(tmp_path, base=ending(tiny()))) == ENDS
    ending(tiny()).save_pretrained(tmp_path / "base")
    assert ends(ctrl.load_published(tmp_path, base=tmp_path / "base")) == ENDS


def test_a_model_of_images_and_text_comes_back(tmp_path: Path) -> None:
    """AutoModelForCausalLM does not know its config: the checkpoint, or the base that is passed, could not be built."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = LlamaConfig(num_hidden_layers=3, vocab_size=96, **sizes)
    images = CLIPVisionConfig(num_hidden_layers=1, image_size=28, patch_size=14, projection_dim=16, **sizes)
    config = LlavaConfig(text_config=text, vision_config=images, image_token_index=95)
    base = LlavaForConditionalGeneration(config).eval()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    perturb(model)
    ctrl.export_published(model, tmp_path)
    for given in (None, base):
        again = ctrl.load_published(tmp_path, base=given)
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_a_base_that_computes_something_else_is_said(structure: str, noted: bool, tmp_path: Path) -> None:
    ctrl.export_published(disturbed(structure=structure), tmp_path)
    other = tiny()
    other.config.rope_parameters["rope_theta"] = 77.0
    other.save_pretrained(tmp_path / "base")
    path = tmp_path / "config.json"
    if noted:
        values = json.loads(path.read_text())
        values["expansion"]["expanded_from"] = str(tmp_path / "base")
        path.write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"configs that compute different things: .*rope_theta is 10000.0 there, 77"):
        again = ctrl.load_published(tmp_path, base=None if noted else other)
    assert again(IDS).logits.isfinite().all()


@pytest.mark.parametrize("older", [False, True])
def test_a_base_that_scales_positions_otherwise_is_said(older: bool, tmp_path: Path) -> None:
    """Llama 3 in place of Llama 3.1. older: config.json has the fields of transformers 4."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 32}
    base = scaled({**scaling, "rope_theta": 10000.0})
    ctrl.export_published(ctrl.expand(base, ctrl.ControlConfig(layers=2)), tmp_path)
    if older:
        values = json.loads((tmp_path / "config.json").read_text())
        del values["rope_parameters"]
        values |= {"rope_scaling": scaling, "rope_theta": 10000}
        (tmp_path / "config.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load_published(tmp_path, scaled({**scaling, "rope_theta": 10000.0}))
    with pytest.warns(UserWarning, match=r"things: rope_parameters.rope_type is llama3 there, default here"):
        ctrl.load_published(tmp_path, tiny())


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "codegen", "gemma3n_text"])
def test_a_base_in_a_half_type_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    """Its routers may be in fp32, and its tables of positions are made of numbers that are not rounded."""
    build(family).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[1, 3]))
    perturb(model)
    ctrl.export_published(model, tmp_path / "export")
    again = ctrl.load_published(tmp_path / "export")
    state = again.state_dict()
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {n: state[n].dtype for n in state}
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_buffers_that_no_file_holds_are_said_if_they_are_rounded(dtype: torch.dtype, tmp_path: Path) -> None:
    """`model.to(dtype)` rounds RoPE's frequencies too; the reader of an export makes them in fp32."""
    tiny().save_pretrained(tmp_path / "base")
    right = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    rounded: Any = tiny().to(dtype)  # type: ignore[arg-type]
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for base, said in ((right, 0), (rounded, 1), (wide, 0), (tiny().to(dtype).float(), 1)):  # type: ignore[arg-type]
        model = ctrl.expand(base.eval(), ctrl.ControlConfig(layers=2))
        with torch.no_grad():
            perturb(model)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ctrl.export_published(model, tmp_path / "export")
        assert sum("no export can hold them" in str(w.message) for w in seen) == said
        assert torch.equal(ctrl.load_published(tmp_path / "export")(IDS).logits, model(IDS).logits) == (not said)

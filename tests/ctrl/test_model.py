"""Expand a model, switch between its branches, and describe what was done."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from transformers import PreTrainedModel

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from tests.helpers.families import SHAPE, build
from tests.helpers.tiny_llama import IDS, tiny
from tests.helpers.trainers import fuse_head, hf_trainer, whole_batch


def test_expanding_twice_is_refused() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(ConfigError, match=r"expanded already: call ctrl\.unload, ctrl\.swap or ctrl\.merge_back first"):
        ctrl.expand(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expanding_under_autocast_is_expanding(dtype: torch.dtype) -> None:
    plain = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with torch.autocast("cpu", dtype=dtype):
        model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    assert model.control.fingerprint == plain.control.fingerprint
    assert {name: p.dtype for name, p in model.named_parameters()} == {n: p.dtype for n, p in plain.named_parameters()}
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]


@pytest.mark.parametrize("use", [ctrl.describe, ctrl.merge_back, lambda m: ctrl.pretrained(m).__enter__()])
def test_a_plain_model_is_refused_by_name(use: Callable[[PreTrainedModel], object]) -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is not expanded: call ctrl\.expand\("):
        use(build("llama"))


@pytest.mark.parametrize("wrapped", [torch.compile, torch.nn.DataParallel, lambda model: "gpt2"])
def test_what_is_no_model_of_transformers_is_refused(wrapped: Callable[[PreTrainedModel], Any]) -> None:
    with pytest.raises(ConfigError, match=r"needs a model of transformers, but got \w+: load it first, and expand it"):
        ctrl.expand(wrapped(build("llama")))


@pytest.mark.parametrize("config", [2, {"layers": 2}])
def test_a_config_of_another_type_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be a ctrl\.ControlConfig, but got .*from_dict reads a dict"):
        ctrl.expand(build("llama"), config)


def test_a_dispatched_model_is_refused_rather_than_left_as_it_is() -> None:
    model = tiny()
    add_hook_to_module(model.model.layers[1], AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ctrl.ConfigError, match="has hooks around its forward"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2))
    remove_hook_from_submodules(model)
    assert len(ctrl.describe(ctrl.expand(model, ctrl.ControlConfig(layers=2)))) == 2


def trained_in_bf16(model: Any, folder: Path) -> None:
    hf_trainer(model, folder, bf16=True).train()


def with_a_fused_head(model: Any, folder: Path) -> None:
    fuse_head(model)


@pytest.mark.parametrize("use", [trained_in_bf16, with_a_fused_head])
def test_a_forward_that_a_trainer_has_left_is_refused_until_it_is_deleted(
    use: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    model = tiny()
    use(model, tmp_path)
    with pytest.raises(ConfigError, match=r"a LlamaForCausalLM has a forward of its own.* first: del model\.forward"):
        ctrl.expand(model, ControlConfig(layers=2))
    del model.forward
    assert ctrl.expand(model, ControlConfig(layers=2))(**whole_batch()).divergence is not None


def test_what_an_interpolation_learns_trains_too() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=[1], interpolation="dlerp", alpha="learned"))
    added = sum(p.numel() for p in model.parameters() if p.requires_grad and p.numel() in (1, 2 * SHAPE["hidden_size"]))
    assert added >= 1 + 2 * SHAPE["hidden_size"]
    names = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad and "interpolation" in name}
    assert names == {"theta", "weight"}


def doubled(module: Any, *given: Any) -> Any:
    return 2 * given[-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [("layers.3.mlp", True), ("layers.3.self_attn.o_proj", True), ("layers.3", False), ("layers.0.mlp", False)],
)
def test_hooks_that_copies_do_not_get_are_said(name: str, said: bool) -> None:
    """Such as those of steering vectors. Around a whole layer, or on one that is not expanded, the start is exact."""
    base = tiny().eval()
    base(IDS, output_hidden_states=True, output_attentions=False)  # transformers' own hooks may be installed
    base.model.get_submodule(name).register_forward_hook(doubled)
    expected = base(IDS).logits
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = ctrl.expand(base, ControlConfig(layers=2))
    found = [str(w.message) for w in seen if "hooks that copies do not get (first: layer 3, " in str(w.message)]
    assert len(found) == said
    assert torch.equal(model(IDS).logits, expected) != said


@pytest.mark.parametrize("block", [torch.inference_mode, torch.no_grad])
def test_copies_made_where_no_gradient_is_kept_train(block: Any) -> None:
    model: Any = tiny()
    with block():
        ctrl.expand(model, ctrl.ControlConfig(layers=2, interpolation="dlerp"))
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * (9 + 1)
    assert all(p.grad is not None and not p.is_inference() for p in trained)


@pytest.mark.parametrize(
    "values", [{"interpolation": "moe_soft"}, {"norm_mix": "learned"}, {"structure": "hybrid"}, {"expanded": "lora"}]
)
def test_a_default_device_around_expand_changes_nothing(values: dict[str, Any]) -> None:
    def made() -> PreTrainedModel:
        torch.manual_seed(3)
        return ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, **values))

    usual = made()
    torch.manual_seed(3)
    base = tiny()
    with torch.device("meta"):
        inside = ctrl.expand(base, ctrl.ControlConfig(layers=2, **values))
    assert not any(tensor.is_meta for tensor in (*inside.parameters(), *inside.buffers()))
    for (name, one), (_, other) in zip(usual.named_parameters(), inside.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("recorded", "weight", "said"), [(True, 0.1, 1), (True, 0.0, 0), (False, 0.1, 0)])
def test_a_loss_of_routers_that_leaves_the_copies_out_is_said(recorded: bool, weight: float, said: int) -> None:
    config = tf.MixtralConfig(**SHAPE, num_local_experts=4, output_router_logits=recorded, router_aux_loss_coef=weight)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = ctrl.expand(tf.MixtralForCausalLM(config), ctrl.ControlConfig(layers=2, divergence="none"))
    assert sum("balance of the frozen layers' routers" in str(one.message) for one in seen) == said
    if said:  # the loss of routers alone moves no router of a copy
        out: Any = model(input_ids=IDS, labels=IDS)
        out.aux_loss.backward()
        gates = [p for n, p in model.named_parameters() if n.endswith("mlp.gate.weight") and ".expanded." in n]
        assert gates[-1].grad is None


@pytest.mark.parametrize(("family", "field"), [("llama", "attention_dropout"), ("gpt2", "attn_pdrop")])
def test_attention_weights_with_dropout_are_not_compared(family: str, field: str) -> None:
    """Equal branches once were 40 nats apart: each drops other weights."""
    config = build(family).config
    setattr(config, field, 0.1)
    base: Any = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(ConfigError, match=f"{field}=0.1 drops some of them at random in training"):
        ctrl.expand(base, ControlConfig(layers=1, divergence="attention"))

"""What a pass of four tokens shows about a model: copies that would go wrong are refused before anything is changed."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.layer import expanded_layers
from tests.helpers.architectures import build, config_of
from tests.helpers.families import labelled, left_padded, perturb

REFUSED = {
    "minimax": r"MiniMaxDecoderLayer uses a cache of its own \(MiniMaxCache\), in which copies have no place",
    "prophetnet": r"ProphetNetDecoderLayer gets hidden states of shape \(1, 12, 32\) for a batch of 1 with 4 tokens",
    "cpmant": r"CpmAntTransformerBlock gets hidden states of shape \(1, 36, 32\) for a batch of 1 with 4 tokens",
    "zaya": "layer 1, a ZayaDecoderLayer, returns a second value next to the hidden state, which layer 2 reads",
    "hy_v4": "layer 1, a HYV4DecoderLayer, returns a second value next to the hidden state, which layer 2 reads",
}


def traits(model: PreTrainedModel) -> dict[str, Any]:
    """All that a refusal or a probe must leave as it was."""
    config = model.config.get_text_config(decoder=True)
    return {
        "kinds": [type(m) for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "trains": {name: p.requires_grad for name, p in model.named_parameters()},
        "attention": config._attn_implementation,
    }


@pytest.mark.parametrize("name", REFUSED)
def test_what_copies_cannot_do_is_refused(name: str) -> None:
    model = build(name).train()
    before, state = traits(model), torch.get_rng_state()
    with pytest.raises(ConfigError, match=REFUSED[name]):
        ctrl.expand(model, ControlConfig(layers=[1]))
    assert traits(model) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["zaya", "hy_v4", "glm_moe_dsa"])
def test_a_second_value_that_no_layer_reads_is_no_reason(name: str) -> None:
    """The last layer's; and in glm_moe_dsa's default config each layer makes its own."""
    layers = [1] if name == "glm_moe_dsa" else [-1]
    model = ctrl.expand(build(name), ControlConfig(layers=layers))
    perturb(model)
    inputs = left_padded(pads=0)
    with ctrl.at_alpha(model, 1.0), torch.no_grad():
        want = model(**inputs, use_cache=False).logits
        assert torch.equal(ctrl.merge_back(model, 1.0)(**inputs, use_cache=False).logits, want)


def test_layers_that_do_not_run_on_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers=\[3\] do not run on text alone"):
        ctrl.expand(_with_cross_attention(), ControlConfig(layers=[1, 3]))
    ctrl.expand(_with_cross_attention(), ControlConfig(layers=[1, 2]))


def _with_cross_attention() -> PreTrainedModel:
    config = config_of("mllama")
    config.text_config.cross_attention_layers = [3]
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("afmoe", "expert_bias"),
        ("ernie4_5_moe", "e_score_correction_bias"),
        ("bart", "encoder_attn"),
        ("whisper", "encoder_attn"),
        ("deepseek_v32", "indexer"),
    ],
)
def test_what_no_gradient_reaches_stays_frozen(name: str, idle: str) -> None:
    """DDP would wait for these gradients. They are saved and loaded with the copy, and stay frozen."""
    base = build(name)
    model = ctrl.expand(copy.deepcopy(base), ControlConfig(layers=2))
    perturb(model)
    inputs = left_padded()
    model.train()(**labelled(inputs), use_cache=False).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    frozen = [n for n, p in model.named_parameters() if ".expanded." in n and not p.requires_grad]
    assert frozen
    assert all(idle in n for n in frozen)


def test_frozen_parts_of_a_copy_come_back_frozen(tmp_path: Any) -> None:
    base = build("bart")
    model = ctrl.expand(copy.deepcopy(base), ControlConfig(layers=2))
    perturb(model)
    loaded = ctrl.load(base, ctrl.save(model, tmp_path / "saved"))
    for one in (model, loaded):
        assert any("fc2" in n for n, p in one.named_parameters() if p.requires_grad)
        assert not any("encoder_attn" in n for n, p in one.named_parameters() if p.requires_grad)
    with torch.no_grad():
        assert torch.equal(loaded(**left_padded()).logits, model(**left_padded()).logits)


def test_experts_in_a_list_keep_training() -> None:
    """Four tokens do not reach all of them."""
    base = build("llama")
    for layer in base.model.layers:
        experts = torch.nn.ModuleList(copy.deepcopy(layer.mlp) for _ in range(8))
        layer.mlp.experts = experts
        layer.mlp.forward = types.MethodType(lambda mlp, x: mlp.experts[0](x), layer.mlp)
        del layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
    model = ctrl.expand(base, ControlConfig(layers=1))
    assert all(p.requires_grad for p in expanded_layers(model)[0].expanded.parameters())


def test_the_base_may_be_frozen() -> None:
    """Copies train however the base was, and the base's own flags do not matter."""
    model = ctrl.expand(build("llama").requires_grad_(False), ControlConfig(layers=2))
    assert all(p.requires_grad for layer in expanded_layers(model) for p in layer.expanded.parameters())


def test_a_base_that_does_not_run_is_expanded_with_a_warning() -> None:
    model = build("llama")
    model.model.norm.weight = torch.nn.Parameter(torch.ones(7))
    with pytest.warns(UserWarning, match="does not run on 4 tokens .* can be expanded was not checked"):
        ctrl.expand(model, ControlConfig(layers=2))
    assert len(expanded_layers(model)) == 2


def test_nothing_runs_without_weights() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("llama"))
    ctrl.expand(model, ControlConfig(layers=2, interpolation="dlerp"))
    assert all(p.is_meta for layer in expanded_layers(model) for p in layer.expanded.parameters())


def test_the_interpolation_has_the_width_of_the_state() -> None:
    """qwen4_exp passes four streams on as one vector, four times as wide as config.hidden_size."""
    model = ctrl.expand(build("qwen4_exp_text"), ControlConfig(layers=2, interpolation="dlerp"))
    widths = {p.shape[-1] for layer in expanded_layers(model) for p in layer.interpolation.parameters()}
    assert 2 * 4 * model.config.hidden_size in widths  # a gate on both branches


def test_a_probe_leaves_the_model_as_it_was() -> None:
    model, twin = build("llama").train(), build("llama").train()
    before, state = traits(model), torch.get_rng_state()
    ctrl.expand(model, ControlConfig(layers=2))
    assert torch.equal(torch.get_rng_state(), state)
    ctrl.unload(model)
    after = traits(model)
    assert {k: v for k, v in after.items() if k != "trains"} == {k: v for k, v in before.items() if k != "trains"}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))

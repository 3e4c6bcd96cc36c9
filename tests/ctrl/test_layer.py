"""An expanded layer keeps the attention rows of both branches apart, and lets them go."""

from __future__ import annotations

import copy

import pytest
import torch

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed, eager, sequences, tiny


def test_attention_divergence_is_the_kl_of_the_rows() -> None:
    base = tiny()
    with pytest.raises(ctrl.ConfigError, match="attn_implementation='eager'"):
        ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, divergence="attention"))
    base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[0], divergence="attention"))
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    assert model(**batch).divergence.item() == 0.0
    with torch.no_grad():
        model.model.layers[0].expanded.self_attn.q_proj.weight.mul_(3.0)
    out = model(**batch)
    out.loss.backward()
    assert out.divergence > 0
    assert model.model.layers[0].expanded.self_attn.q_proj.weight.grad is not None
    assert not any("attention_rows" in vars(m) for m in model.modules())
    copy.deepcopy(model)


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
@pytest.mark.parametrize("labels", [None, IDS])
def test_no_attention_row_outlives_its_layer(structure: str, labels: torch.Tensor | None) -> None:
    """Rows hold the graph: neither a pass without a divergence nor a stacked layer may leave them behind."""
    model = eager(structure=structure)
    for _ in range(2):
        model(IDS, labels=labels)
        assert not any("attention_rows" in vars(m) for m in model.modules())
        copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS, labels=IDS).divergence, model(IDS, labels=IDS).divergence)
    plain = ctrl.merge_back(model)
    assert not any(m._forward_hooks for m in plain.modules())
    assert not any("attention_rows" in vars(m) for m in plain.modules())


def test_rows_and_the_state_of_the_pass_are_released_after_an_error() -> None:
    model = eager()
    layer = ctrl.layer.expanded_layers(model)[1]
    layer.interpolation.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        model(IDS)
    assert not any("attention_rows" in vars(m) for m in model.modules())
    assert model.control.current is None


def test_attention_without_weights_is_an_error_that_says_so() -> None:
    model = eager()
    model.set_attn_implementation("sdpa")
    model(IDS)
    with pytest.raises(RuntimeError, match=r"those of LlamaDecoderLayer are None: call model\.set_attn_implementation"):
        model(IDS, labels=IDS)


def test_plerp_compares_what_proj_projects() -> None:
    """a with b, and P a with b: at one offset their divergences differ, and plerp's is lerp's."""
    found = {}
    for name in ("lerp", "plerp", "proj"):
        model = disturbed(interpolation=name, layers=[0])  # one layer: both branches get the same input
        for layer in ctrl.layer.expanded_layers(model):
            if name != "lerp":
                torch.manual_seed(8)
                layer.interpolation.offset.data.normal_(0, 0.2)
            layer.expanded.load_state_dict(ctrl.layer.expanded_layers(disturbed(layers=[0]))[0].expanded.state_dict())
        out = model(IDS, labels=IDS)
        out.divergence.backward()
        found[name] = out.divergence.item()
        if name == "plerp":
            assert layer.interpolation.offset.grad is None  # the loss of the mix alone trains its P
    assert found["plerp"] == pytest.approx(found["lerp"], rel=1e-6)
    assert found["proj"] != pytest.approx(found["lerp"], rel=1e-3)

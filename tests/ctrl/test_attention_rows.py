"""The attention rows of both branches are kept apart, and dropped after the layer."""

from __future__ import annotations

import copy

import pytest
import torch

import ctrl
from ctrl import attention_rows
from tests.helpers.tiny_llama import IDS, eager, sequences, tiny


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
    assert attention_rows._thread.rows is None
    copy.deepcopy(model)


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
@pytest.mark.parametrize("labels", [None, IDS])
def test_no_attention_row_outlives_its_layer(structure: str, labels: torch.Tensor | None) -> None:
    """Rows hold the graph: neither a pass without a divergence nor a stacked layer may leave them behind."""
    model = eager(structure=structure)
    for _ in range(2):
        model(IDS, labels=labels)
        assert attention_rows._thread.rows is None
        copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS, labels=IDS).divergence, model(IDS, labels=IDS).divergence)
    plain = ctrl.merge_back(model)
    assert not any(m._forward_hooks for m in plain.modules())


def test_rows_and_the_state_of_the_pass_are_released_after_an_error() -> None:
    model = eager()
    layer = ctrl.layer.expanded_layers(model)[1]
    layer.interpolation.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        model(IDS)
    assert attention_rows._thread.rows is None
    assert model.control.current is None


def test_attention_without_weights_is_an_error_that_says_so() -> None:
    model = eager()
    model.set_attn_implementation("sdpa")
    model(IDS)
    with pytest.raises(RuntimeError, match=r"those of LlamaDecoderLayer are None: call model\.set_attn_implementation"):
        model(IDS, labels=IDS)

"""A description names the expanded layers, what trains, and which alphas are those of all tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

import ctrl
from ctrl.config import ControlConfig
from tests.helpers.families import build
from tests.helpers.tiny_llama import tiny


def test_describe_names_layers_branches_and_alpha() -> None:
    base = build("llama")
    one_layer = sum(p.numel() for p in base.model.layers[0].parameters())
    rows = ctrl.describe(ctrl.expand(base, ControlConfig(structure="hybrid", layers=2, alpha_start=0.25)))
    assert [(row.layer, row.branch, row.trainable) for row in rows] == [
        (1, "stack", one_layer),
        (3, "concat", one_layer),
    ]
    assert rows[0].alpha is None
    assert rows[1].alpha == pytest.approx(0.25)
    table = str(rows).splitlines()
    assert len(table) == 5
    assert f"{2 * one_layer:,}" in table[-2]
    assert "0.250" in table[2]


def test_describe_says_which_alphas_are_not_those_of_tokens() -> None:
    """A trained gate may give tokens .9 while its theta is as it was."""
    model = ctrl.expand(tiny(), ControlConfig(layers=2, interpolation="dlerp"))
    said = "* sigmoid(theta): each token has an alpha of its own"
    assert "0.500*" in str(ctrl.describe(model))
    assert said in str(ctrl.describe(model))
    with ctrl.at_alpha(model, 0.25):
        assert [row.alpha for row in ctrl.describe(model)] == [0.25, 0.25]
        assert "*" not in str(ctrl.describe(model))
    assert "*" not in str(ctrl.describe(ctrl.expand(tiny(), ControlConfig(layers=2))))


@pytest.mark.parametrize("expanded_as", ["full", "lora"])
def test_describe_prints_the_share_as_peft_does(expanded_as: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = ctrl.expand(tiny(), ControlConfig(layers=2, expanded=expanded_as))
    model.model.norm.weight.requires_grad_(True)
    PeftModel.print_trainable_parameters(_Counted(model))  # type: ignore[arg-type]
    assert str(ctrl.describe(model)).splitlines()[-1] == capsys.readouterr().out.strip()


class _Counted:
    """What PEFT's method asks of its model."""

    get_nb_trainable_parameters = PeftModel.get_nb_trainable_parameters

    def __init__(self, model: Any) -> None:
        self.named_parameters = model.named_parameters
        self.base_model = model


def test_weights_that_are_packed_in_pairs_count_as_two() -> None:
    """As `num_parameters` of transformers counts them: "all params" of a base in nf4 was half as large."""
    model: Any = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2))
    whole = ctrl.describe(model).parameters
    linear = model.model.layers[0].mlp.up_proj
    shape, half = linear.weight.shape, linear.weight.numel() // 2
    linear.weight = torch.nn.Parameter(torch.zeros(half, 1, dtype=torch.uint8), requires_grad=False)
    linear.weight.quant_state = SimpleNamespace(shape=shape)
    assert ctrl.describe(model).parameters == whole

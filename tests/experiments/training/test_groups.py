"""Alphas and gates have rates of their own and no weight decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.training.groups import Rates, kinds, split_groups
from tests.helpers.engine import arm_config, train
from tests.helpers.tiny_llama import expanded, tiny

LEARNED = {"layers": [1, 3], "alpha": "learned", "interpolation": "dlerp"}


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW([{"params": trained, "weight_decay": 0.1}], lr=1e-3)


def test_kinds_are_those_of_trained_parameters() -> None:
    model = expanded(**LEARNED, norm_mix="learned")
    named = {id(p): name for name, p in model.named_parameters()}
    found = {named[i]: kind for i, kind in kinds(model).items()}
    assert {name.rpartition(".")[2] for name, kind in found.items() if kind == "alpha"} == {"theta"}
    assert {name.rpartition(".")[2] for name, kind in found.items() if kind == "gates"} == {
        "weight",
        "interpolation_factor",
    }
    assert kinds(tiny()) == {}
    assert kinds(expanded()) == {}  # alpha is fixed


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, {(1e-3, 0.1)}),
        ({"alpha": 10}, {(1e-3, 0.1), (1e-2, 0.0)}),
        ({"alpha": 10, "gates": 0.5}, {(1e-3, 0.1), (1e-2, 0.0), (5e-4, 0.0)}),
    ],
)
def test_each_kind_that_is_given_has_a_group(rates: dict[str, float], expected: set[tuple[float, float]]) -> None:
    model = expanded(**LEARNED)
    made = optimizer(model)
    split_groups(made, model, Rates(**rates))
    assert {(group["lr"], group["weight_decay"]) for group in made.param_groups} == expected
    ids = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_rate_changes_the_step_of_alpha_alone(tmp_path: Path) -> None:
    def trained(**training: Any) -> dict[str, torch.Tensor]:
        arm = arm_config("control", control=LEARNED)
        return train(arm, tmp_path / str(len(training)), steps=1, warmup_steps=0, **training).weights

    plain, fast = trained(), trained(rates={"alpha": 3})
    for name, value in plain.items():
        if name.endswith("theta"):
            torch.testing.assert_close(fast[name], 3 * value, rtol=1e-3, atol=1e-7)
        else:
            assert torch.equal(fast[name], value), name


def test_a_resumed_arm_goes_on_with_its_groups(tmp_path: Path) -> None:
    arm = arm_config("control", control=LEARNED)
    whole = train(arm, tmp_path / "whole", rates={"alpha": 3})
    train(arm, tmp_path / "killed", rates={"alpha": 3}, steps=4, save_every=2)
    again = train(arm, tmp_path / "killed", rates={"alpha": 3})
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())

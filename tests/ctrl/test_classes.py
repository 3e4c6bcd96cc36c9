"""An expanded model comes back from pickle (torch.save, spawned processes, Ray) as the same kind of object."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import expanded_layers
from tests.helpers.families import EVERY, build, perturb
from tests.helpers.tiny_llama import IDS, disturbed, eager, expanded, tiny
from tests.helpers.trainers import own_loop, own_loss

SETTINGS: list[dict[str, Any]] = [
    *({"interpolation": name} for name in INTERPOLATIONS),
    {"structure": "stack"},
    {"structure": "hybrid"},
    {"norm_mix": 0.2},
    {"norm_mix": "learned"},
    {"expanded": "lora"},
]


def same(model: Any, again: Any) -> None:
    """It computes the same, of the same classes, and shares nothing."""
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert again.control.config == model.control.config
    assert again.control is not model.control
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    before = model(IDS).logits
    perturb(again, seed=9)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.equal(again(IDS).logits, before)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_every_variant_comes_back(settings: dict[str, Any], protocol: int) -> None:
    model = disturbed(**settings)
    same(model, pickle.loads(pickle.dumps(model, protocol)))
    same(model, copy.deepcopy(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", EVERY)
def test_every_family_comes_back(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = ctrl.expand(build(family).to(dtype), ctrl.ControlConfig(layers=2, structure="hybrid"))  # type: ignore[arg-type]
    perturb(model)
    torch.save(model, tmp_path / "model.pt")
    same(model, torch.load(tmp_path / "model.pt", weights_only=False))


def test_a_model_that_an_earlier_version_has_pickled_warns() -> None:
    """It had no place for what was said to the user: a training pass ended in AttributeError."""
    model = expanded().train().requires_grad_()
    former = {name: value for name, value in model.control.__getstate__().items() if name not in ("said", "watched")}
    vars(model.control).clear()
    model.control.__setstate__(former)
    with pytest.warns(UserWarning, match="18 weights of the pretrained layers"):
        model(IDS, labels=IDS)


def test_training_goes_on() -> None:
    models = [expanded().train(), pickle.loads(pickle.dumps(expanded().train()))]
    assert own_loop(models[0], own_loss) == own_loop(models[1], own_loss)


def test_an_open_log_does_not_travel_and_hooks_work() -> None:
    model = eager()
    with ctrl.diagnostics(model):
        again = pickle.loads(pickle.dumps(model))
    assert again.control.logs == {}
    assert torch.equal(again(IDS, labels=IDS).divergence, model(IDS, labels=IDS).divergence)
    plain = ctrl.merge_back(again)
    assert not any(m._forward_hooks for m in plain.modules())


@pytest.mark.slow
def test_it_comes_back_in_another_process(tmp_path: Path) -> None:
    model = disturbed()
    torch.save((model, model(IDS).logits), tmp_path / "both.pt")
    code = "import sys, torch; m, l = torch.load(sys.argv[1], weights_only=False); "
    code += f"print(torch.equal(m(torch.tensor({IDS.tolist()})).logits, l), type(m).__name__, len(m.state_dict()))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "both.pt")], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "LlamaForCausalLM", str(len(model.state_dict()))]


def test_layers_and_copies_come_back_alone() -> None:
    layer = expanded_layers(ctrl.expand(tiny().bfloat16(), ctrl.ControlConfig(layers=2)))[0]
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is type(layer)
    assert type(again.expanded) is type(layer.expanded)
    assert type(again.expanded.mlp.up_proj) is type(layer.expanded.mlp.up_proj)

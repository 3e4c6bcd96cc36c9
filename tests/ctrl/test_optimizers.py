"""An optimizer that holds no weight that trains is named; one that holds some is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import SGD

import ctrl
from tests.helpers.tiny_llama import IDS, expanded, tiny


def made(order: str, folder: Any) -> tuple[Any, list[SGD]]:
    """A model in training, and its optimizers as they were made in this order."""
    model: Any = tiny()
    base = SGD(model.parameters(), 0.1)
    config = ctrl.ControlConfig(layers=2)
    ctrl.expand(model, config).train()
    copies = SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    if order == "before swap":
        model(input_ids=IDS, labels=IDS).loss.backward()
        copies.step()
        ctrl.swap(model, ctrl.save(ctrl.expand(tiny(), config), folder))
    if order == "before unload":
        ctrl.expand(ctrl.unload(model), config)
    frozen = SGD(model.model.embed_tokens.parameters(), 0.1)
    other = SGD(tiny().parameters(), 0.1)
    return model, {"before expand": [base], "of two": [frozen, copies], "of another model": [other]}.get(
        order, [copies]
    )


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("before expand", 1),
        ("before swap", 1),
        ("before unload", 1),
        ("after expand", 0),
        ("of two", 0),
        ("of another model", 0),
    ],
)
def test_an_optimizer_without_a_weight_that_trains_is_said_once(order: str, said: int, tmp_path: Any) -> None:
    model, optimizers = made(order, tmp_path)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(4):
            model(input_ids=IDS, labels=IDS).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    assert sum("the optimizer holds no weight that trains" in str(w.message) for w in seen) == said
    moved = any(not before[name].equal(p) for name, p in model.named_parameters())
    assert moved == (order in ("after expand", "of two"))


def said_in_steps(model: Any, loss: Any, count: int = 4) -> int:
    """How often SGD's steps on this loss warn that no copy has a gradient."""
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(count):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    return sum("no copy has had a gradient in three steps" in str(w.message) for w in seen)


def own(model: Any) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=IDS, labels=IDS).loss
    return loss


def inside_pretrained(model: Any) -> torch.Tensor:
    model.lm_head.requires_grad_(True)
    with ctrl.pretrained(model):
        return own(model)


def evaluated(model: Any) -> torch.Tensor:
    loss = own(model)
    model.eval().train()  # an evaluation after each step begins no other training
    return loss


def late(model: Any) -> torch.Tensor:
    """Labels from the third pass on."""
    model.passes = getattr(model, "passes", 0) + 1
    loss: torch.Tensor = own(model) if model.passes > 2 else own(model) * 0
    return loss


@pytest.mark.filterwarnings("ignore:ControlConfig. alpha_start=0")
@pytest.mark.parametrize(
    ("values", "loss", "said"),
    [
        ({"alpha_start": 0.0}, own, 1),
        ({"alpha_start": 0.0}, evaluated, 1),
        ({"interpolation": "moe", "alpha_start": 0.3, "alpha": "learned"}, own, 1),
        ({"divergence": "none"}, inside_pretrained, 1),
        ({}, late, 0),
        ({"structure": "hybrid"}, own, 0),
        ({"expanded": "lora"}, own, 0),
    ],
)
def test_copies_without_a_gradient_are_said_once(values: dict[str, Any], loss: Any, said: int) -> None:
    model = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, **values)).train()
    before = {name: p.clone() for name, p in model.named_parameters() if ".expanded." in name}
    assert said_in_steps(model, loss) == said
    assert all(p.equal(before[n]) for n, p in model.named_parameters() if n in before) == bool(said)


def test_gates_that_train_before_the_copies_are_as_meant() -> None:
    model = expanded(interpolation="dlerp").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("interpolation.weight" in name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no copy trains")
        assert said_in_steps(model, own) == 0

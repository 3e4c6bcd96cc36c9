"""An optimizer that holds no weight that trains is named; one that holds some is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch.optim import SGD

import ctrl
from tests.helpers.tiny_llama import IDS, tiny


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

"""Averages: one contract for all of them, and their formulas against plain restatements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.methods import AVERAGES, TUNINGS
from experiments.methods.active import ActiveAverage
from experiments.methods.losses import Kl
from experiments.methods.method import Method
from experiments.methods.parts import read_part
from experiments.methods.tuning import Full
from experiments.methods.weights import snapshot, trainable
from tests.helpers.engine import CONTROL, LAYERS, context
from tests.helpers.tiny_llama import tiny

FIELDS: dict[str, dict[str, Any]] = {"ema": {"decay": 0.5}, "mer": {"every": 2}}
TRAIN: dict[str, Any] = {
    "full": "full",
    "partial": {"partial": LAYERS},
    "control": CONTROL,
    "lora": {"lora": {"rank": 2}},
    "corda": {"corda": {"rank": 2, "batches": 2}},
}


def read(name: str, **fields: Any) -> Any:
    return read_part(AVERAGES, {name: FIELDS.get(name, {}) | fields})


def move(model: Any) -> None:
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.1 * torch.randn_like(p))


def walk(part: Any, steps: int, train: Any = "full") -> tuple[ActiveAverage, Any, list[dict[str, Tensor]]]:
    """An average, and a model that a fixed sequence of steps moves: its weights before, then after each step."""
    model = read_part(TUNINGS, train).prepare(tiny(), context())
    average = part.begin(model, context())
    seen = [snapshot(model)]
    torch.manual_seed(9)
    for step in range(1, steps + 1):
        move(model)
        seen.append(snapshot(model))
        average.after_step(model, step)
    return average, model, seen


def evaluated(average: ActiveAverage, model: Any) -> dict[str, Tensor]:
    with average.evaluated(model):
        return snapshot(model)


CASES = [
    (name, train) for name in AVERAGES for train in TRAIN if not read(name).refusal(read_part(TUNINGS, TRAIN[train]))
]


@pytest.mark.parametrize(("name", "train"), CASES)
def test_a_fresh_object_with_the_state_goes_on_the_same_way(name: str, train: str) -> None:
    one, model, _ = walk(read(name), 3, TRAIN[train])
    two, again, _ = walk(read(name), 0, TRAIN[train])
    with torch.no_grad():
        for p, q in zip(trainable(again).values(), trainable(model).values(), strict=True):
            p.copy_(q)
    if one.state():
        two.load_state({key: value.clone() for key, value in one.state().items()})
    for step in (4, 5):
        for other, average in ((model, one), (again, two)):
            torch.manual_seed(step)
            move(other)
            average.after_step(other, step)
    for first, second in ((evaluated(one, model), evaluated(two, again)), (snapshot(model), snapshot(again))):
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", AVERAGES)
def test_its_state_loads_next_to_that_of_a_loss_term(name: str) -> None:
    method = Method(Full(), (Kl(budget=0.1),), read(name))
    one, two = (method.begin(tiny(), context()) for _ in range(2))
    one.terms[0].dual.factor = 3.0  # type: ignore[attr-defined]
    two.load_state(one.state())
    assert two.terms[0].dual.factor == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "train"), CASES)
def test_training_goes_on_with_the_same_bits_after_an_evaluation(name: str, train: str) -> None:
    part = read(name)
    average, model, seen = walk(part, 3, TRAIN[train])
    before = snapshot(model)
    inside = evaluated(average, model)
    assert all(torch.equal(before[key], value) for key, value in snapshot(model).items())
    wrote = any(not torch.equal(before[key], seen[-1][key]) for key in before)
    assert wrote == (part.writes_weights and 3 % 2 == 0)  # mer has every=2, and step 3 is none of them
    move(model)
    average.after_step(model, 4)
    moved = snapshot(model)
    changed = any(not torch.equal(inside[key], moved[key]) for key in moved)
    assert changed


@pytest.mark.parametrize("name", AVERAGES)
def test_only_those_that_say_so_write_weights(name: str) -> None:
    part = read(name)
    _, model, seen = walk(part, 2)
    wrote = any(not torch.equal(value, seen[-1][key]) for key, value in snapshot(model).items())
    assert wrote == part.writes_weights


def test_ema_is_the_weighted_sum_of_all_steps() -> None:
    average, model, seen = walk(read("ema", decay=0.8), 5)
    found = evaluated(average, model)
    for name in found:
        expected = 0.8**5 * seen[0][name] + sum(0.2 * 0.8 ** (5 - t) * seen[t][name] for t in range(1, 6))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_wise_is_measured_between_base_and_tuned() -> None:
    for alpha, expected in ((0.0, "base"), (0.25, "between"), (1.0, "tuned")):
        average, model, seen = walk(read("wise", alpha=alpha), 2)
        for name, value in evaluated(average, model).items():
            start, end = seen[0][name], seen[2][name]
            if expected == "between":
                torch.testing.assert_close(value, 0.75 * start + 0.25 * end)
            else:
                assert torch.equal(value, start if expected == "base" else end)


def test_mer_pulls_weights_to_the_slow_ones_every_k_steps() -> None:
    average, model, seen = walk(read("mer", every=2, rate=0.25), 5)
    slow = {name: t.double() for name, t in seen[0].items()}
    for step in (2, 4):
        slow = {name: t + 0.25 * (seen[step][name].double() - t) for name, t in slow.items()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(average.state()[name].double(), slow[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(p, seen[5][name])  # step 5 is no multiple of 2: the fast weights


def test_wise_would_not_be_on_the_line_between_two_adapters() -> None:
    """Why it is refused there: the mean of the factors is not the factors of the mean."""
    a, b, c, d = (torch.randn(4, 2), torch.randn(2, 4), torch.randn(4, 2), torch.randn(2, 4))
    assert ((a + c) / 2 @ (b + d) / 2 - (a @ b + c @ d) / 2).abs().max() > 0.1
    for train in ("lora", "corda"):
        assert "folds the adapter into the weights" in str(read("wise").refusal(read_part(TUNINGS, TRAIN[train])))
    for train in ("full", "partial", "control"):
        assert read("wise").refusal(read_part(TUNINGS, TRAIN[train])) is None

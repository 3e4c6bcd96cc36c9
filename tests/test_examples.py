"""The examples of docs/extending.md of what trains keep the contracts of the built-in variants, and work in a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.methods import TUNINGS
from tests.ctrl import test_interpolation
from tests.ctrl.test_divergence import TestEveryDivergence as DivergenceContract
from tests.ctrl.test_interpolation import TestEveryInterpolation as InterpolationContract
from tests.experiments.methods import test_averaging, test_losses, test_method, test_token_weights, test_tuning
from tests.experiments.training.test_schedules import rates
from tests.experiments.training.test_schedules import (
    test_every_schedule_is_continuous_and_between_0_and_1 as schedule_contract,
)
from tests.helpers import engine, reference
from tests.helpers.examples import Load, cases, labels, loading
from tests.helpers.option_scores import sharp
from tests.helpers.small_run import small_values


@pytest.fixture
def load() -> Iterator[Load]:
    with loading() as imported:
        yield imported


@pytest.mark.parametrize(("check", "arguments"), cases(InterpolationContract), ids=labels)
def test_the_interpolation_keeps_the_contract(
    load: Load, monkeypatch: pytest.MonkeyPatch, check: str, arguments: dict[str, Any]
) -> None:
    load("gap_lerp")
    known = reference.alpha_token

    def alpha_token(name: str, a: Any, b: Any, h: Any, p: Any) -> float:
        if name != "gap_lerp":
            return known(name, a, b, h, p)
        return reference.sigmoid(float(p["theta"]) + float(p["w"]) * math.dist(a, b))

    monkeypatch.setattr(reference, "alpha_token", alpha_token)
    monkeypatch.setattr(test_interpolation, "NAMES", [*test_interpolation.NAMES, "gap_lerp"])
    getattr(InterpolationContract(), check)("gap_lerp", **arguments)


def test_the_interpolation_has_true_gradients_and_a_merged_form(load: Load) -> None:
    load("gap_lerp")
    test_interpolation.test_gradcheck("gap_lerp")
    for dtype in test_interpolation.DTYPES:
        test_interpolation.test_merged_weights_are_those_of_a_branch_at_the_ends("gap_lerp", dtype)


@pytest.mark.parametrize(("check", "arguments"), cases(DivergenceContract), ids=labels)
def test_the_divergence_keeps_the_contract(
    load: Load, monkeypatch: pytest.MonkeyPatch, check: str, arguments: dict[str, Any]
) -> None:
    load("huber")
    known = reference.divergence_token

    def divergence_token(name: str, a: Any, b: Any, margin: float = 0.0) -> float:
        if name != "huber":
            return known(name, a, b, margin)
        gaps = [abs(float(y - x)) for x, y in zip(a, b, strict=True)]
        return sum(gap**2 / 2 if gap <= 1 else gap - 1 / 2 for gap in gaps) / len(gaps)

    monkeypatch.setattr(reference, "divergence_token", divergence_token)
    getattr(DivergenceContract(), check)("huber", **arguments)


def test_a_model_trains_with_both_and_comes_back(load: Load, tmp_path: Path) -> None:
    load("gap_lerp")
    load("huber")
    base = sharp()
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        start = base(input_ids=ids).logits
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, interpolation="gap_lerp", divergence="huber"))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, start)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        optimizer.step()
    assert out.divergence > 0
    ctrl.save(model, tmp_path / "saved")
    again = ctrl.load(sharp(), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    merged = ctrl.merge_back(model, batches=[{"input_ids": ids}])
    assert (
        ctrl.merge_gap(model, merged, [{"input_ids": ids}]).kl < ctrl.merge_gap(model, sharp(), [{"input_ids": ids}]).kl
    )


def test_the_schedule_keeps_the_contract_and_its_values_are_those_by_hand(load: Load) -> None:
    load("half_life")
    schedule_contract("half_life")
    assert rates("half_life") == pytest.approx([0.0, 0.25, 0.5, 0.75] + [2 ** (-i / 4) for i in range(17)])
    values = small_values("base", training={"steps": 4, "schedule": "half_life", "warmup_steps": 1})
    assert parse_config(values).training.schedule == "half_life"


PARTS: dict[str, dict[str, Any]] = {  # file of an example -> an arm that uses it, for the contract of whole methods
    "one_part": {"train": {"one_part": {}}},
    "focal": {"train": engine.CONTROL, "loss": [{"focal": {"gamma": 1.0}}]},
    "to_zero": {"loss": [{"to_zero": {"weight": 0.5}}]},
    "swa": {"average": {"swa": {"every": 2}}},
}


def test_the_tuning_keeps_the_contract_and_trains_its_part_alone(load: Load) -> None:
    load("one_part")
    test_tuning.test_a_tuning_starts_as_the_base("one_part")
    test_tuning.test_it_trains_something_and_in_the_layers_it_chooses("one_part")
    test_tuning.test_its_fields_survive_a_round_trip_and_a_wrong_one_is_named("one_part")
    test_tuning.test_a_shorthand_gives_it_its_control("one_part")
    model = TUNINGS["one_part"].model_validate({"part": "mlp"}).prepare(sharp(), engine.context())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".mlp." in name
    }
    with pytest.raises(ConfigError, match="no layer of the model has a part 'self_attn'"):
        TUNINGS["one_part"]().prepare(torch.nn.Linear(2, 2), engine.context())  # type: ignore[arg-type]


@pytest.mark.parametrize("train", test_losses.TRAIN)
def test_the_loss_term_with_a_penalty_keeps_the_contract(load: Load, train: str) -> None:
    load("to_zero")
    test_losses.test_a_term_adds_a_penalty_or_weighs_tokens("to_zero")
    test_losses.test_micro_batches_add_up_to_a_large_batch("to_zero", train)


def test_the_loss_term_that_weighs_tokens_keeps_the_contract(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load("focal")
    test_losses.test_a_term_adds_a_penalty_or_weighs_tokens("focal")
    test_token_weights.test_weights_are_constants_between_0_and_1_whatever_the_chunks("focal")
    test_token_weights.test_chunks_of_any_size_give_the_same_weights("focal", monkeypatch)


def test_the_loss_terms_are_their_formulas(load: Load) -> None:
    p = torch.tensor([0.1, 0.5, 0.9])
    weights = load("focal").Focal(gamma=2.0).token_weights(p.log())
    torch.testing.assert_close(weights, torch.tensor([0.81, 0.25, 0.01]))
    term, model, _ = test_losses.begun(load("to_zero").ToZero(weight=3.0))
    squares = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    assert test_losses.penalty(term, model, test_losses.short()).item() == pytest.approx(1.5 * squares, rel=1e-5)


@pytest.mark.parametrize("train", test_averaging.TRAIN)
def test_the_average_keeps_the_contract(load: Load, train: str) -> None:
    load("swa")
    test_averaging.test_a_fresh_object_with_the_state_goes_on_the_same_way("swa", train)
    test_averaging.test_training_goes_on_with_the_same_bits_after_an_evaluation("swa", train)
    test_averaging.test_only_those_that_say_so_write_weights("swa")


def test_the_average_is_the_mean_of_every_second_step(load: Load) -> None:
    load("swa")
    average, model, seen = test_averaging.walk(test_averaging.read("swa", every=2), 5)
    for name, value in test_averaging.evaluated(average, model).items():
        torch.testing.assert_close(value, (seen[2][name] + seen[4][name]) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_method_of_each_part_keeps_the_contract_of_whole_methods(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    example, case = load(name), f"example {name}"
    monkeypatch.setitem(engine.PRODUCTS, case, PARTS[name])
    if name == "one_part":
        monkeypatch.setitem(test_method.TRAINED, example.OnePart, ("model.layers.",))
    test_method.test_only_what_a_method_trains_changes(case)
    test_method.test_resumed_equals_uninterrupted_bit_for_bit(case, tmp_path / "resumed")
    test_method.test_two_micro_batches_are_one_large_batch(case, tmp_path / "batches")
    test_method.test_what_is_saved_loads_as_what_was_measured(case, tmp_path / "saved")
    test_method.whole.cache_clear()

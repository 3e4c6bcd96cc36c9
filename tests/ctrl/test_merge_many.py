"""Merging several expanded models of one base: the formula, its shares, its gap, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import ctrl
from tests.helpers.tiny_llama import BATCHES, IDS, disturbed, tiny


def expected_weights(parts: list[Any], weights: list[float]) -> dict[str, torch.Tensor]:
    """W_0 + sum_i w_i (W_i - W_0), in fp64."""
    base = tiny().state_dict()
    states = [part.state_dict() for part in parts]
    return {
        name: start.double()
        + sum(w * (s[name].double() - start.double()) for w, s in zip(weights, states, strict=True))
        for name, start in base.items()
    }


def assert_weights(model: Any, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=1e-5, atol=1e-6)


def test_two_models_of_one_base_merge_into_one() -> None:
    one, two = disturbed(seed=1), disturbed(seed=2, layers=[0, 3])
    alone = ctrl.merge_models([one], [1.0])
    torch.testing.assert_close(alone(IDS).logits, ctrl.merge_back(one)(IDS).logits, rtol=1e-4, atol=1e-5)
    both = ctrl.merge_models([one, two])
    assert type(both) is type(tiny())
    assert all(p.requires_grad for p in both.parameters())
    assert_weights(both, expected_weights([ctrl.merge_back(m) for m in (one, two)], [0.5, 0.5]))


def test_alpha_and_batches_reach_each_model() -> None:
    models = [disturbed(seed=seed, interpolation="dlerpin") for seed in (1, 2)]
    measured = [ctrl.merge_back(m, batches=BATCHES) for m in models]
    assert_weights(ctrl.merge_models(models, [0.3, 0.6], batches=BATCHES), expected_weights(measured, [0.3, 0.6]))
    for alpha, each in ((0.2, [0.2, 0.2]), ([0.1, [0.2, 0.9]], [0.1, [0.2, 0.9]])):
        parts = [ctrl.merge_back(m, alpha=a) for m, a in zip(models, each, strict=True)]  # type: ignore[arg-type]
        assert_weights(ctrl.merge_models(models, alpha=alpha), expected_weights(parts, [0.5, 0.5]))
    with pytest.raises(ctrl.ConfigError, match="one entry per model, but got 3 for 2 models"):
        ctrl.merge_models(models, alpha=[0.1, 0.2, 0.3])


def test_gives_its_gap_to_each_model() -> None:
    models = [disturbed(seed=1), disturbed(seed=2)]
    plain, gaps = ctrl.merge_models(models, [1.0, 0.0], gap_on=BATCHES)
    _, alone = ctrl.merge_back(models[0], gap_on=BATCHES)
    assert gaps[0].kl == pytest.approx(alone.kl, rel=1e-3)
    assert gaps[1] == ctrl.merge_gap(models[1], plain, BATCHES)
    assert gaps[1].kl > 2 * gaps[0].kl


def test_half_types_are_rounded_once() -> None:
    models = [disturbed(seed=seed).bfloat16() for seed in (1, 2, 3)]
    wide = [copy.deepcopy(model).float() for model in models]
    once = {name: tensor.bfloat16() for name, tensor in ctrl.merge_models(wide).state_dict().items()}
    state = ctrl.merge_models(models).state_dict()
    assert all(torch.equal(state[name], once[name]) for name in once)


def test_what_cannot_be_merged_is_refused() -> None:
    one, two = disturbed(seed=1), disturbed(seed=2)
    other = ctrl.expand(tiny(seed=9).eval(), ctrl.ControlConfig(layers=2))
    with pytest.raises(ctrl.ConfigError, match="model 1 and the first were not expanded from the same base"):
        ctrl.merge_models([one, other])
    two.lm_head.weight.requires_grad_(True)
    with pytest.raises(ctrl.ConfigError, match=r"model 1 trains lm_head\.weight besides its copies"):
        ctrl.merge_models([one, two])
    with pytest.raises(ctrl.ConfigError, match="one weight per model, but got 1 for 2"):
        ctrl.merge_models([one, two], [1.0])
    with pytest.raises(ctrl.ConfigError, match="finite weights, but got"):
        ctrl.merge_models([one], [float("nan")])
    with pytest.raises(ctrl.ConfigError, match="needs structure='concat'"):
        ctrl.merge_models([disturbed(structure="hybrid")])
    with pytest.raises(ctrl.ConfigError, match="has no merged form"):
        ctrl.merge_models([disturbed(interpolation="moe")])


def test_bases_whose_configs_compute_different_things_are_refused() -> None:
    other: Any = disturbed(seed=6)
    other.config.rms_norm_eps = 1e-2
    with pytest.raises(ctrl.ConfigError, match=r"model 1 and the first have configs that .*: rms_norm_eps is 1e-06"):
        ctrl.merge_models([disturbed(), other])


def test_leaves_its_inputs_alone() -> None:
    one = disturbed()
    before = copy.deepcopy(one.state_dict())
    ctrl.merge_models([one, one])
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())
    assert {n for n, p in one.named_parameters() if p.requires_grad} == {
        n for n in before if ".expanded." in n
    }  # theta is fixed

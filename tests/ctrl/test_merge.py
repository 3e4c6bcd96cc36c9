"""Merge back: plain models, exact at the ends, their gap reported between; several models into one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import ctrl
from tests.ctrl.test_trainer import tiny
from tests.reference import slerp as reference_slerp

IDS = torch.arange(1, 25).reshape(2, 12)
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]


def disturbed(seed: int = 5, **kwargs: object) -> PreTrainedModel:
    model = ctrl.expand(tiny().eval(), ctrl.ControlConfig(**{"layers": 2, **kwargs}))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("interpolation", ["lerp", "slerp", "dlerp", "dlerpin"])
@pytest.mark.parametrize("structure", ["concat", "hybrid"])
def test_merged_is_plain_saves_and_reports_its_gap(tmp_path: Path, interpolation: str, structure: str) -> None:
    model = disturbed(interpolation=interpolation, structure=structure)
    merged, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    assert type(merged) is type(tiny())
    assert "control" not in vars(merged)
    assert gap == ctrl.merge_gap(model, merged, BATCHES)
    assert gap.tokens == int(MASK.sum())
    assert gap.kl > 0  # between the ends merging is an approximation
    assert gap.max_logit_difference > 0
    merged.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(IDS).logits, merged(IDS).logits)
    generated = [m.generate(IDS, max_new_tokens=8, do_sample=False) for m in (plain, merged)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("interpolation", ["lerp", "slerp", "dlerp", "dlerpin"])
def test_merged_at_alpha_0_and_1_equals_the_branch(interpolation: str) -> None:
    model = disturbed(interpolation=interpolation)
    with ctrl.pretrained(model):
        base = model(IDS).logits
    assert torch.equal(ctrl.merge_back(model, alpha=0)(IDS).logits, base)
    at_one = disturbed(interpolation="lerp", alpha_start=1.0)
    torch.testing.assert_close(ctrl.merge_back(at_one)(IDS).logits, at_one(IDS).logits)
    assert not torch.allclose(at_one(IDS).logits, base)


def test_weights_are_lerp_elementwise_and_slerp_by_row() -> None:
    for interpolation in ("lerp", "slerp"):
        model = disturbed(interpolation=interpolation, alpha_start=0.3)
        layer = ctrl.model.expanded_layers(model)[0]
        a, b = layer.mlp.up_proj.weight.detach(), layer.expanded.mlp.up_proj.weight.detach()
        merged = ctrl.merge_back(model).model.layers[layer.index].mlp.up_proj.weight.detach()
        expected = 0.7 * a + 0.3 * b
        if interpolation == "slerp":
            rows = zip(a.double().numpy(), b.double().numpy(), strict=True)
            expected = torch.stack([torch.from_numpy(reference_slerp(x, y, 0.3)) for x, y in rows]).float()
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def test_alpha_per_layer_and_measured_alpha_reach_the_weights() -> None:
    model = disturbed(interpolation="dlerpin", alpha="learned")
    measured = ctrl.merge.measured_alphas(model, BATCHES)
    assert all(0 < alpha < 1 for alpha in measured)
    assert measured != [ctrl.describe(model)[i].alpha for i in range(2)]  # the gate counts, not theta alone
    given, found = ctrl.merge_back(model, alpha=measured), ctrl.merge_back(model, batches=BATCHES)
    assert torch.equal(given(IDS).logits, found(IDS).logits)
    with pytest.raises(ctrl.ConfigError, match="one per expanded layer, but got 3"):
        ctrl.merge_back(model, alpha=[0.1, 0.2, 0.3])


def test_stack_becomes_a_deeper_plain_model_with_equal_logits() -> None:
    model = disturbed(structure="stack")
    merged = ctrl.merge_back(model)
    assert merged.config.num_hidden_layers == 6
    assert torch.equal(merged(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("interpolation", ["plerp", "proj", "moe", "moe_soft"])
def test_what_has_no_merged_form_is_refused(interpolation: str) -> None:
    with pytest.raises(ctrl.ConfigError, match=f"interpolation='{interpolation}' has no merged form"):
        ctrl.merge_back(disturbed(interpolation=interpolation))


def test_relaxed_norms_are_refused() -> None:
    with pytest.raises(ctrl.ConfigError, match="norm_mix"):
        ctrl.merge_back(disturbed(norm_mix=0.1))


def test_merge_back_leaves_the_expanded_model_alone_unless_in_place() -> None:
    model = disturbed()
    before = model(IDS).logits
    ctrl.merge_back(model)
    assert torch.equal(model(IDS).logits, before)
    with pytest.raises(ctrl.ConfigError, match="gap_on compares with the expanded model"):
        ctrl.merge_back(model, in_place=True, gap_on=BATCHES)
    merged = ctrl.merge_back(model, in_place=True)
    assert merged is model
    assert type(model) is type(tiny())
    ctrl.expand(model, ctrl.ControlConfig(layers=1))  # a plain model can be expanded again


def test_low_rank_copies_merge() -> None:
    model = disturbed(expanded="lora", lora_rank=2, alpha_start=1.0)
    torch.testing.assert_close(ctrl.merge_back(model)(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_two_models_of_one_base_merge_into_one() -> None:
    one, two = disturbed(seed=1), disturbed(seed=2, layers=[0, 3])
    base = tiny().eval()
    alone = ctrl.merge_models([one], [1.0])
    torch.testing.assert_close(alone(IDS).logits, ctrl.merge_back(one)(IDS).logits, rtol=1e-4, atol=1e-5)
    both = ctrl.merge_models([one, two]).state_dict()
    parts = [ctrl.merge_back(m).state_dict() for m in (one, two)]
    for name, start in base.state_dict().items():
        expected = start + 0.5 * (parts[0][name] - start) + 0.5 * (parts[1][name] - start)
        torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=1e-6)
    other = ctrl.expand(tiny(seed=9).eval(), ctrl.ControlConfig(layers=2))
    with pytest.raises(ctrl.ConfigError, match="not expanded from the same base"):
        ctrl.merge_models([one, other])
    with pytest.raises(ctrl.ConfigError, match="one weight per model, but got 1 for 2"):
        ctrl.merge_models([one, two], [1.0])


def test_merge_models_leaves_its_inputs_alone() -> None:
    one = disturbed()
    before = copy.deepcopy(one.state_dict())
    ctrl.merge_models([one, one])
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())

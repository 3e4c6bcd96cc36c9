"""Merge back: plain models, exact at the ends, their gap reported between."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import ctrl
from ctrl.interpolation import INTERPOLATIONS, Interpolation
from ctrl.layer import expanded_layers
from ctrl.numerics import lerp
from tests.helpers.families import perturb
from tests.helpers.reference import sigmoid
from tests.helpers.reference import slerp as reference_slerp
from tests.helpers.tiny_llama import BATCHES, IDS, MASK, disturbed, tiny

MERGED = [name for name, cls in INTERPOLATIONS.items() if cls.merged is not None]


@pytest.mark.parametrize("interpolation", MERGED)
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


@pytest.mark.parametrize("interpolation", MERGED)
def test_merged_at_alpha_0_and_1_equals_the_branch(interpolation: str) -> None:
    model = disturbed(interpolation=interpolation)
    with ctrl.pretrained(model):
        base = model(IDS).logits
    assert torch.equal(ctrl.merge_back(model, alpha=0)(IDS).logits, base)
    with ctrl.at_alpha(model, 1):
        copies = model(IDS).logits
    assert not torch.allclose(copies, base)
    assert torch.equal(ctrl.merge_back(model, alpha=1)(IDS).logits, copies)
    at_one = disturbed(interpolation=interpolation, alpha_start=1.0)
    assert torch.equal(ctrl.merge_back(at_one)(IDS).logits, copies)  # theta = inf, whatever the gate says


def test_inside_at_alpha_the_fixed_alpha_is_merged() -> None:
    model = disturbed(interpolation="dlerp")
    expected = ctrl.merge_back(model, alpha=0.25)(IDS).logits
    with ctrl.at_alpha(model, 0.25):
        for batches in (None, BATCHES):
            assert torch.equal(ctrl.merge_back(model, batches=batches)(IDS).logits, expected)
    assert not torch.equal(ctrl.merge_back(model)(IDS).logits, expected)


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
def test_copies_of_another_dtype_merge_into_the_base_s(structure: str) -> None:
    model = disturbed(structure=structure).bfloat16()
    for layer in ctrl.layer.expanded_layers(model):
        layer.expanded.float()
    merged = ctrl.merge_back(model, alpha=1.0)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert merged(IDS).logits.isfinite().all()
    for layer in ctrl.layer.expanded_layers(model):
        layer.expanded.bfloat16()
    assert torch.equal(ctrl.merge_back(model, alpha=1.0)(IDS).logits, merged(IDS).logits)


def test_no_attention_hooks_are_left_behind() -> None:
    base = tiny().eval()
    base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, divergence="attention"))
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    assert hooked
    merged = ctrl.merge_back(model)
    assert not [name for name, module in merged.named_modules() if module._forward_hooks]
    assert not [layer for layer in merged.model.layers if "attention_handles" in vars(layer)]
    assert hooked == [name for name, module in model.named_modules() if module._forward_hooks]


def test_weights_are_lerp_elementwise_and_slerp_by_row() -> None:
    for interpolation in ("lerp", "slerp"):
        model = disturbed(interpolation=interpolation, alpha_start=0.3)
        layer = ctrl.layer.expanded_layers(model)[0]
        a, b = layer.mlp.up_proj.weight.detach(), layer.expanded.mlp.up_proj.weight.detach()
        merged = ctrl.merge_back(model).model.layers[layer.index].mlp.up_proj.weight.detach()
        expected = 0.7 * a + 0.3 * b
        if interpolation == "slerp":
            rows = zip(a.double().numpy(), b.double().numpy(), strict=True)
            expected = torch.stack([torch.from_numpy(reference_slerp(x, y, 0.3)) for x, y in rows]).float()
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def gate_by_hand(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Mean of sigmoid(w.h + theta) over all real tokens, one at a time, for each expanded layer of a dlerpin model."""
    means = []
    for layer in ctrl.layer.expanded_layers(model):
        w = layer.interpolation.weight.detach().double().numpy()[0]
        shares = []
        for batch in batches:
            with torch.no_grad():
                states = model(**batch, output_hidden_states=True).hidden_states[layer.index].double().numpy()
            real = batch["attention_mask"].bool().numpy()
            shares += [sigmoid(float(w @ h) + layer.interpolation.theta.item()) for h in states[real]]
        means.append(sum(shares) / len(shares))
    return means


def test_measured_alpha_is_the_mean_over_tokens_and_reaches_the_weights() -> None:
    model = disturbed(interpolation="dlerpin", alpha="learned")
    with torch.no_grad():
        for layer in ctrl.layer.expanded_layers(model):
            layer.interpolation.weight.mul_(20)  # unlike shares, so that an average of averages would show
    short = {"input_ids": IDS + 40, "attention_mask": torch.zeros_like(MASK)}
    short["attention_mask"][0, -2:] = 1
    empty = {"input_ids": IDS, "attention_mask": torch.zeros_like(MASK)}
    batches = [*BATCHES, short, empty]
    measured = ctrl.merge.measured_alphas(model, batches)
    assert measured == pytest.approx(gate_by_hand(model, batches), rel=1e-5)
    parts = [gate_by_hand(model, [batch]) for batch in (BATCHES[0], short)]
    assert measured[0] != pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-3)
    given, found = ctrl.merge_back(model, alpha=measured), ctrl.merge_back(model, batches=batches)
    assert torch.equal(given(IDS).logits, found(IDS).logits)


@pytest.mark.parametrize("interpolation", MERGED)
def test_a_gate_whose_weights_are_left_out_is_said(interpolation: str) -> None:
    """Without text the alpha of dlerp and dlerpin is sigmoid(theta): the reference's fault 7."""
    model, fresh = (
        disturbed(interpolation=interpolation),
        ctrl.expand(tiny(), ctrl.ControlConfig(interpolation=interpolation, layers=2)),
    )

    def said(*args: Any, **kwargs: Any) -> bool:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ctrl.merge_back(*args, **kwargs)
        return any(f"alpha of '{interpolation}' depends on the token" in str(w.message) for w in seen)

    assert said(model) == INTERPOLATIONS[interpolation].per_token
    assert not said(model, batches=BATCHES)
    assert not said(model, alpha=0.5)
    with ctrl.at_alpha(model, 0.5):
        assert not said(model)
    assert not said(fresh)  # its weights are 0
    assert not said(disturbed(interpolation=interpolation, alpha_start=1.0))  # 1 for every token


def test_a_gate_of_ones_own_may_name_its_weights_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Interpolation):
        """Alpha of a small network."""

        per_token = True
        merged = lerp

        def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
            super().__init__(hidden_size, alpha_start, learned)
            self.net = nn.Linear(hidden_size, 1)

        def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
            return torch.sigmoid(self._theta(h) + self.net(h))

    monkeypatch.setitem(INTERPOLATIONS, "small", Small)
    with pytest.warns(ctrl.errors.ControlWarning, match="alpha of 'small' depends on the token"):
        ctrl.merge_back(disturbed(interpolation="small"))


def test_alpha_that_is_no_number_is_refused() -> None:
    model = disturbed()
    with pytest.raises(ctrl.ConfigError, match="one per expanded layer, but got 3"):
        ctrl.merge_back(model, alpha=[0.1, 0.2, 0.3])
    for alpha in (float("nan"), [0.5, float("inf")]):
        with pytest.raises(ctrl.ConfigError, match=r"alpha=(nan|inf) for layer [13] is not finite"):
            ctrl.merge_back(model, alpha=alpha)
    empty = [{"input_ids": IDS, "attention_mask": torch.zeros_like(MASK)}]
    for batches in ([], empty):
        with pytest.raises(ctrl.ConfigError, match="no real token to measure alpha on"):
            ctrl.merge_back(model, batches=batches)


def test_stack_becomes_a_deeper_plain_model_with_equal_logits() -> None:
    model = disturbed(structure="stack")
    with pytest.warns(UserWarning, match="turns the copies into layers of the plain model"):
        merged = ctrl.merge_back(model)
    assert merged.config.num_hidden_layers == 6
    assert torch.equal(merged(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("interpolation", [name for name in INTERPOLATIONS if name not in MERGED])
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


def test_adapters_on_top_are_refused_until_they_are_merged(tmp_path: Path) -> None:
    model = disturbed()
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    for use in (ctrl.merge_back, lambda m: ctrl.merge_models([m]), lambda m: ctrl.save(m, tmp_path / "no")):
        for wrapped in (peft, model):
            with pytest.raises(ctrl.ConfigError, match=r"PEFT adapter .* call merge_and_unload\(\) first"):
                use(wrapped)
    assert not (tmp_path / "no").exists()
    adapted = peft(input_ids=IDS).logits
    whole = peft.merge_and_unload()
    torch.testing.assert_close(whole(IDS).logits, adapted, rtol=1e-4, atol=1e-5)
    ctrl.merge_back(whole)
    ctrl.save(whole, tmp_path)
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path)(IDS).logits, whole(IDS).logits)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_low_rank_copies_in_a_half_type_are_rounded_once(alpha: float) -> None:
    """W + alpha B A, rounded at the end. PEFT's own merge rounds W + B A before it is mixed."""
    base: Any = tiny().bfloat16()
    model = ctrl.expand(base, ctrl.ControlConfig(layers=1, expanded="lora", lora_rank=2))
    with torch.no_grad():
        perturb(model)
    layer = expanded_layers(model)[0]
    plain: Any = ctrl.merge_back(model, alpha=alpha)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        parts: Any = layer.expanded.get_submodule(name)
        w, a, b = parts.base_layer.weight, parts.lora_A["default"].weight, parts.lora_B["default"].weight
        expected = (w.float() + alpha * (b @ a)).bfloat16()
        found = plain.model.layers[layer.index].get_submodule(name).weight
        assert (found != expected).float().mean() < 0.01  # ties that fp32 rounds in another order


def with_a_tie() -> Any:
    """A base whose layers use one matrix twice."""
    base = tiny().eval()
    for layer in base.model.layers:
        layer.mlp.up_proj.weight = layer.mlp.gate_proj.weight
    return base


def test_a_weight_that_a_layer_uses_twice_stays_one(tmp_path: Path) -> None:
    model = ctrl.expand(with_a_tie(), ctrl.ControlConfig(layers=2))
    with torch.no_grad():
        perturb(model)
    merged: Any = ctrl.merge_back(model, alpha=1.0)
    assert merged.model.layers[1].mlp.up_proj.weight is merged.model.layers[1].mlp.gate_proj.weight
    with ctrl.at_alpha(model, 1.0):
        assert torch.equal(merged(IDS).logits, model(IDS).logits)
    ctrl.save(model, tmp_path)
    assert torch.equal(ctrl.load(with_a_tie(), tmp_path)(IDS).logits, model(IDS).logits)

"""Expanded models under the machinery people use: caches, packing, precisions, dispatching; options of a config."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

import ctrl
from ctrl.diagnostics import attach
from tests.ctrl.test_merge import IDS, MASK, disturbed
from tests.ctrl.test_trainer import sequences, tiny
from tests.helpers import reference
from tests.helpers.families import EVERY, build, perturb


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "beams", "config-less"])
@pytest.mark.slow
def test_every_cache_gives_the_tokens_of_none(structure: str, implementation: str) -> None:
    model = disturbed(structure=structure)
    kwargs: dict[str, object] = {"attention_mask": MASK, "max_new_tokens": 24, "do_sample": False}
    if implementation == "beams":
        kwargs["num_beams"] = 3
    expected = model.generate(IDS, **kwargs, use_cache=False)
    if implementation == "static":
        kwargs["past_key_values"] = StaticCache(config=model.config, max_cache_len=40)
    if implementation == "config-less":
        kwargs["past_key_values"] = DynamicCache()
    assert torch.equal(model.generate(IDS, **kwargs), expected)
    with ctrl.pretrained(model):
        base = model.generate(IDS, attention_mask=MASK, max_new_tokens=24, do_sample=False, use_cache=False)
    assert not torch.equal(base, expected[:, : base.shape[1]])


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.slow
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(family: str, structure: str) -> None:
    model = ctrl.expand(build(family), ctrl.ControlConfig(structure=structure, layers=2))
    perturb(model, seed=3)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 16, "do_sample": False}
    static = StaticCache(config=model.config, max_cache_len=40)
    assert torch.equal(model.generate(IDS, **kwargs, past_key_values=static), model.generate(IDS, **kwargs))


def test_a_cache_filled_without_the_copies_is_refused() -> None:
    model = disturbed()
    with ctrl.pretrained(model):
        cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values was filled while the expanded layers did not run"):
        model(IDS[:, :1], past_key_values=cache)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = disturbed()
    packed = torch.cat([IDS[0], IDS[1]])[None]
    positions = torch.cat([torch.arange(12), torch.arange(12)])[None]
    together = model(packed, position_ids=positions, use_cache=False).logits
    alone = [model(IDS[i : i + 1], use_cache=False).logits for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.slow
def test_flex_attention_gives_the_logits_and_tokens_of_sdpa(structure: str) -> None:
    """Not compiled: that takes minutes here. It has no backward pass on a CPU."""
    model = disturbed(structure=structure)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
    logits, tokens = model(IDS, attention_mask=MASK).logits[MASK.bool()], model.generate(IDS, **kwargs)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(model(IDS, attention_mask=MASK).logits[MASK.bool()], logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.generate(IDS, **kwargs), tokens)


def test_attention_divergence_is_the_kl_of_the_rows() -> None:
    base = tiny()
    with pytest.raises(ctrl.ConfigError, match="attn_implementation='eager'"):
        ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, divergence="attention"))
    base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[0], divergence="attention"))
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    assert model(**batch).divergence.item() == 0.0
    with torch.no_grad():
        model.model.layers[0].expanded.self_attn.q_proj.weight.mul_(3.0)
    out = model(**batch)
    out.loss.backward()
    assert out.divergence > 0
    assert model.model.layers[0].expanded.self_attn.q_proj.weight.grad is not None
    assert not any("attention_rows" in vars(m) for m in model.modules())
    copy.deepcopy(model)


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
@pytest.mark.parametrize("labels", [None, IDS])
def test_no_attention_row_outlives_its_layer(structure: str, labels: torch.Tensor | None) -> None:
    """Rows hold the graph: neither a pass without a divergence nor a stacked layer may leave them behind."""
    model = eager(structure=structure)
    for _ in range(2):
        model(IDS, labels=labels)
        assert not any("attention_rows" in vars(m) for m in model.modules())
        copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS, labels=IDS).divergence, model(IDS, labels=IDS).divergence)
    plain = ctrl.merge_back(model)
    assert not any(m._forward_hooks for m in plain.modules())
    assert not any("attention_rows" in vars(m) for m in plain.modules())


def test_rows_and_the_state_of_the_pass_are_released_after_an_error() -> None:
    model = eager()
    layer = ctrl.layer.expanded_layers(model)[1]
    layer.interpolation.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        model(IDS)
    assert not any("attention_rows" in vars(m) for m in model.modules())
    assert model.control.current is None


def test_attention_without_weights_is_an_error_that_says_so() -> None:
    model = eager()
    model.set_attn_implementation("sdpa")
    model(IDS)
    with pytest.raises(RuntimeError, match=r"those of LlamaDecoderLayer are None: call model\.set_attn_implementation"):
        model(IDS, labels=IDS)


def eager(structure: str = "concat") -> PreTrainedModel:
    """With the attention divergence, its copies disturbed."""
    base = tiny().eval()
    base.set_attn_implementation("eager")
    config = ctrl.ControlConfig(layers=2, structure=structure, divergence="attention")  # type: ignore[arg-type]
    model = ctrl.expand(base, config)
    perturb(model)
    return model


def test_alpha_scaling_and_detaching() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}

    def alpha_gradient(**kwargs: object) -> torch.Tensor:
        model = disturbed(interpolation="dlerpin", alpha="learned", divergence_weight=100.0, **kwargs)
        model(**batch).divergence.backward()
        gradient = ctrl.layer.expanded_layers(model)[-1].interpolation.weight.grad
        return torch.zeros(1) if gradient is None else gradient

    assert alpha_gradient(scale_by_alpha=True).abs().max() > 0  # the gate can shrink its own penalty
    assert alpha_gradient(scale_by_alpha=True, detach_alpha=True).abs().max() == 0
    plain, scaled = disturbed(alpha_start=0.25), disturbed(alpha_start=0.25, scale_by_alpha=True)
    torch.testing.assert_close(scaled(**batch).divergence, 0.25 * plain(**batch).divergence)


def divergence_of(model: PreTrainedModel, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> float:
    """From the branches: the mean over layers and chosen tokens of alpha |b - a|^2 / hidden."""
    seen: list[float] = []

    class Branches:
        def note(self, layer: object, a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor, *_: object) -> None:
            a, b, share = (x.detach().double().numpy() for x in (a, b, alpha.expand(*a.shape[:2], 1)))
            per_token = share[..., 0] * reference.divergence("mse", a, b)
            seen.append(reference.masked_mean(per_token, chosen.numpy()))

    with attach(model, Branches()):  # type: ignore[arg-type]
        model(**batch)
    return float(np.mean(seen))


@pytest.mark.parametrize("tokens", ["real", "labels"])
@pytest.mark.parametrize("interpolation", ["lerp", "dlerp", "moe"])
def test_the_divergence_is_scaled_by_each_tokens_alpha_over_the_tokens_that_count(
    interpolation: str, tokens: str
) -> None:
    """Labels at padding do not make it count; with moe all real tokens do, those that are not routed with 0."""
    labels = IDS.clone()
    labels[:, 5:9] = -100
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": labels}
    config = {"interpolation": interpolation, "alpha": "learned", "scale_by_alpha": True, "divergence_tokens": tokens}
    model = disturbed(**config)
    chosen = MASK.bool() & (labels != -100) if tokens == "labels" else MASK.bool()
    want = divergence_of(model, batch, chosen)
    assert want > 0
    assert model(**batch).divergence.item() == pytest.approx(want, rel=1e-4)


def test_detached_pretrained_side_changes_lower_gradients_only() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    gradients = []
    for detach in (False, True):
        model = disturbed(detach_pretrained=detach)
        model(**batch).divergence.backward()
        low, high = ctrl.layer.expanded_layers(model)
        gradients.append([layer.expanded.mlp.up_proj.weight.grad for layer in (low, high)])
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_a_detached_pretrained_side_still_trains_what_projects_it() -> None:
    """P is learned: were its output detached, nothing would train it, and DDP would wait for its gradient."""
    batch = {"input_ids": IDS, "labels": IDS}
    gradients = []
    for detach in (False, True):
        model = disturbed(interpolation="proj", detach_pretrained=detach)
        model(**batch).divergence.backward()
        gradients.append([layer.interpolation.offset.grad for layer in ctrl.layer.expanded_layers(model)])
    for plain, detached in zip(*gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(detached, plain)


@pytest.mark.parametrize("divergence", ["none", "attention", "mse"])
@pytest.mark.parametrize("interpolation", ["proj", "plerp"])
def test_what_nothing_trains_is_frozen(interpolation: str, divergence: str) -> None:
    base = tiny().eval()
    base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, interpolation=interpolation, divergence=divergence))
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    offsets = [layer.interpolation.offset for layer in ctrl.layer.expanded_layers(model)]
    assert [p.requires_grad for p in offsets] == [interpolation == "plerp" or divergence == "mse"] * 2


def test_relaxed_norm_is_the_formula() -> None:
    model = disturbed(norm_mix=0.25)
    norm = ctrl.layer.expanded_layers(model)[0].expanded.input_layernorm
    x = torch.randn(2, 3, 32)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    torch.testing.assert_close(norm(x), 0.25 * x + 0.75 * plain)


def test_a_fixed_alpha_reaches_the_norms_that_take_alpha() -> None:
    model = disturbed(norm_mix="alpha", alpha_start=0.25)
    norm = ctrl.layer.expanded_layers(model)[0].expanded.input_layernorm
    x = torch.randn(2, 3, 32)
    before = norm(x)
    with ctrl.at_alpha(model, 1.0):
        assert torch.equal(norm(x), x)
    with ctrl.at_alpha(model, 0.25):
        torch.testing.assert_close(norm(x), before)
    assert torch.equal(norm(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    base = tiny().eval().to(dtype)  # type: ignore[arg-type]
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, interpolation="slerp"))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.logits.dtype == dtype
    disturbed().to(dtype)(IDS)


def test_a_dispatched_model_is_refused_rather_than_left_as_it_is() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules

    model = tiny()
    add_hook_to_module(model.model.layers[1], AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ctrl.ConfigError, match="has hooks around its forward"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2))
    remove_hook_from_submodules(model)
    assert len(ctrl.describe(ctrl.expand(model, ctrl.ControlConfig(layers=2)))) == 2


def test_router_logits_are_recorded_as_often_as_in_the_base() -> None:
    base = build("mixtral")
    expected = base(IDS, output_router_logits=True)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2))
    out = model(IDS, output_router_logits=True)
    assert len(out.router_logits) == len(expected.router_logits)
    assert torch.equal(out.aux_loss, expected.aux_loss)

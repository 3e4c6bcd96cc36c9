"""Expanded models under the machinery people use: packing, precisions, dispatching, adapters; options of a config."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import ctrl
from tests.helpers.families import build
from tests.helpers.tiny_llama import IDS, MASK, disturbed, sequences, tiny


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    base = tiny().eval().to(dtype)  # type: ignore[arg-type]
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, interpolation="slerp"))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.logits.dtype == dtype
    disturbed().to(dtype)(IDS)


def test_router_logits_are_recorded_as_often_as_in_the_base() -> None:
    base = build("mixtral")
    expected = base(IDS, output_router_logits=True)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2))
    out = model(IDS, output_router_logits=True)
    assert len(out.router_logits) == len(expected.router_logits)
    assert torch.equal(out.aux_loss, expected.aux_loss)


def test_lora_on_top_of_an_expanded_model() -> None:
    model = disturbed()
    before = model(IDS).logits
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert torch.equal(peft(input_ids=IDS).logits, before)
    out = peft(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.divergence > 0
    trained = [n for n, p in peft.named_parameters() if p.grad is not None]
    assert any(".expanded." in n and "lora_" in n for n in trained)
    assert all("lora_" in n for n in trained)

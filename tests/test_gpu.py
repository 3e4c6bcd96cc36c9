"""The gpu tier: what only a CUDA device can show. Skipped, with the reason, if there is none."""

from __future__ import annotations

import pytest
import torch

import ctrl
from experiments.models.head import only_label_logits, why_whole
from experiments.models.precision import Precision
from experiments.training.lm_loss import ChunkedLoss
from tests.helpers.families import build, perturb
from tests.helpers.tiny_llama import IDS, MASK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, torch sees none"),
]


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_starts_as_the_base_and_generates_the_same_with_and_without_cache(structure: str) -> None:
    base = build("llama").cuda()
    ids, mask = IDS.cuda(), MASK.cuda()
    before = base(ids, attention_mask=mask).logits
    model = ctrl.expand(base, ctrl.ControlConfig(structure=structure, layers=2))  # type: ignore[arg-type]
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
    perturb(model)
    kwargs = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False}
    assert torch.equal(model.generate(ids, **kwargs), model.generate(ids, **kwargs, use_cache=False))


def test_trains_in_bf16_and_leaves_the_frozen_weights() -> None:
    model = ctrl.expand(build("llama").cuda(), ctrl.ControlConfig(layers=2, interpolation="dlerp", alpha="learned"))
    precision = Precision("bf16")
    precision.hold_frozen(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, fused=True)
    losses = []
    for _ in range(10):
        with precision.autocast():
            out = model(input_ids=IDS.cuda(), attention_mask=MASK.cuda(), labels=IDS.cuda())
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.lm_loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_compiled_layers_agree() -> None:
    model = ctrl.expand(build("llama").cuda(), ctrl.ControlConfig(layers=2))
    perturb(model)
    batch = {"input_ids": IDS.cuda(), "attention_mask": MASK.cuda(), "labels": IDS.cuda()}
    expected = model(**batch)
    compiled = torch.compile(model, fullgraph=True)(**batch)
    torch.testing.assert_close(compiled.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.divergence, expected.divergence, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
def test_flash_attention_gives_the_logits_and_tokens_of_sdpa(structure: str) -> None:
    pytest.importorskip("flash_attn", reason="needs the package flash-attn (attn_implementation='flash_attention_2')")
    model = ctrl.expand(build("llama"), ctrl.ControlConfig(structure=structure, layers=2))  # type: ignore[arg-type]
    perturb(model)
    model.cuda().bfloat16()
    ids, mask = IDS.cuda(), MASK.cuda()
    expected = model(ids, attention_mask=mask).logits[mask.bool()].float()
    model.set_attn_implementation("flash_attention_2")
    assert model.config._attn_implementation == "flash_attention_2"
    found = model(ids, attention_mask=mask).logits[mask.bool()].float()
    assert (found - expected).norm() <= 3e-2 * expected.norm()
    model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert whole.shape == (2, ids.shape[1] + 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_chunked_loss_is_that_of_whole_logits(precision: str) -> None:
    model = build("llama").cuda()
    batch = only_label_logits({"input_ids": IDS.cuda(), "attention_mask": MASK.cuda(), "labels": IDS.cuda()})
    with Precision(precision).autocast():
        assert why_whole(model) is None
        expected = model(**batch).loss
        with ChunkedLoss(model).computed():
            loss = model(**batch).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (found,) = torch.autograd.grad(loss, model.lm_head.weight)
    (own,) = torch.autograd.grad(expected, model.lm_head.weight)
    assert (found - own).norm() <= (1e-5 if precision == "fp32" else 2e-2) * own.norm()

"""The log of what the branches do: its figures, in every structure, without a wait for the device and bounded."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from transformers import OlmoConfig, OlmoForCausalLM

import ctrl
from ctrl.diagnostics import Log, update_size
from ctrl.layer import expanded_layers
from tests.helpers.families import SHAPE, WINDOW, build, labelled, left_padded, perturb
from tests.helpers.tiny_llama import IDS, MASK, disturbed


def test_diagnostics_give_the_figures_and_cost_no_gradient() -> None:
    model = disturbed(interpolation="dlerpin")
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    plain = model(**batch).loss
    with ctrl.diagnostics(model, tokens=10_000, update_every=2) as log:
        assert torch.equal(model(**batch).loss, plain)
        model(**batch)
    assert not model.control.logs
    rows = log.rows
    assert [(row.step, row.layer) for row in rows] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    layer = ctrl.layer.expanded_layers(model)[0]
    change = sum((e - dict(layer.named_parameters())[n]).square().sum() for n, e in layer.expanded.named_parameters())
    size = sum(dict(layer.named_parameters())[n].square().sum() for n, _ in layer.expanded.named_parameters())
    assert rows[0].update == pytest.approx((change / size).sqrt().item(), rel=1e-5)
    assert rows[2].update != rows[2].update  # nan: measured every second pass
    assert 0 < rows[0].alpha < 1
    assert rows[0].alpha_spread > 0
    assert log.latest()["relative_l2/layer_3"] == rows[3].relative_l2
    mean = sum(row.divergence for row in rows[:2]) / 2
    assert model(**batch).divergence.item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(("structure", "kinds"), [("stack", ["stack"] * 2), ("hybrid", ["stack", "concat"])])
def test_stacked_layers_are_in_the_log(structure: str, kinds: list[str]) -> None:
    """b = E(a): what the copy adds. They mix nothing, so their divergence and alpha are left out."""
    model = disturbed(structure=structure)
    with ctrl.diagnostics(model) as log:
        model(input_ids=IDS, attention_mask=MASK, labels=IDS)
    assert [row.layer for row in log.rows] == [1, 3]
    for row, kind in zip(log.rows, kinds, strict=True):
        assert (row.alpha == row.alpha) == (row.divergence == row.divergence) == (kind == "concat")
        assert 0 < row.relative_l2 < 10
        assert row.update > 0
    mixing = [layer for layer, kind in zip((1, 3), kinds, strict=True) if kind == "concat"]
    assert list(log.mean("alpha")) == mixing
    assert list(log.mean("cosine")) == [1, 3]


def test_branches_are_compared_at_the_first_real_tokens() -> None:
    """Fewer than asked for, or more: padding never counts, whatever stands there."""
    real = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    a, b = torch.randn(2, 2, 4, 8)
    b[real == 0] = torch.nan
    layer = expanded_layers(disturbed())[0]
    for tokens in (1, 2, 5, 100):
        log = Log(tokens, update_every=2**31, step=0)
        log.note(layer, a, b, torch.tensor(0.5), (b - a).square().mean(-1), real)
        want = ((b - a).norm(dim=-1) / a.norm(dim=-1))[real == 1][:tokens].mean()
        assert log.rows[0].relative_l2 == pytest.approx(want.item(), rel=1e-5)
        assert log.rows[0].divergence == pytest.approx((b - a)[real == 1].square().mean().item(), rel=1e-5)
        assert (log.rows[0].alpha, log.rows[0].alpha_spread) == (0.5, 0.0)
        assert np.isnan(log.rows[0].closed)  # one alpha for all tokens


def test_figures_are_those_of_their_formulas() -> None:
    """In numpy, over the tokens that are real; alpha differs by token."""
    real = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    a, b, alpha = torch.randn(2, 4, 8), torch.randn(2, 4, 8), torch.rand(2, 4, 1)
    alpha[0, 0] = alpha[0, 2] = alpha[1, 3] = 0.0  # padding, and two of five real tokens
    per_token = (b - a).square().mean(-1)
    log = Log(tokens=100, update_every=2**31, step=0)
    log.note(expanded_layers(disturbed())[0], a, b, alpha, per_token, real)
    (row,), chosen = log.rows, real.numpy() == 1
    x, y, share = (t.double().numpy()[chosen] for t in (a, b, alpha[..., 0]))
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    assert row.cosine == pytest.approx(cosine.mean(), rel=1e-5)
    assert (row.alpha, row.alpha_spread) == pytest.approx((share.mean(), share.std(ddof=1)), rel=1e-4)
    assert row.divergence == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)
    assert row.closed == pytest.approx(0.4)


def test_noting_reads_no_value() -> None:
    """On the meta device an operation that waits for values (nonzero, a boolean index, item) raises."""
    layer = expanded_layers(disturbed(interpolation="dlerp"))[0].to("meta")
    log = Log(tokens=4, update_every=1)
    a, b = torch.randn(2, 2, 6, 32, device="meta")
    mask = torch.ones(2, 9, device="meta")
    log.note(layer, a, b, torch.rand(2, 6, 1, device="meta"), torch.rand(2, 6, device="meta"), mask)
    assert log.raw[0][2].shape == (7,)


def test_the_log_keeps_the_last_passes() -> None:
    model = disturbed()
    with ctrl.diagnostics(model, keep=2) as log:
        for _ in range(5):
            model(IDS)
    assert [(row.step, row.layer) for row in log.rows] == [(3, 1), (3, 3), (4, 1), (4, 3)]


def test_blocks_may_overlap() -> None:
    """The inner one took the passes of the outer, and the first one to end those of the other."""
    model = disturbed()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        one, two = first.enter_context(ctrl.diagnostics(model)), second.enter_context(ctrl.diagnostics(model))
        model(IDS)
        first.close()
        model(IDS)
    assert ([row.step for row in one.rows], [row.step for row in two.rows]) == ([0, 0], [0, 0, 1, 1])
    assert [row.cosine for row in one.rows] == [row.cosine for row in two.rows[:2]]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_layers_that_checkpointing_runs_again_are_noted_once(structure: str, reentrant: bool) -> None:
    """The backward pass runs them in the opposite order, which would count as further steps."""
    model = disturbed(structure=structure, divergence="none").train()  # reentrant checkpointing drops a divergence
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    with ctrl.diagnostics(model) as log:
        for _ in range(2):
            model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    assert [(row.step, row.layer) for row in log.rows] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def _olmo() -> OlmoForCausalLM:
    return OlmoForCausalLM(OlmoConfig(**SHAPE))


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo"])
def test_the_update_of_a_low_rank_copy_is_that_of_its_product(family: str) -> None:
    """OLMo's norms have no weights: there the branches share all that is not low-rank."""
    base = _olmo() if family == "olmo" else build(family)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[1], expanded="lora", alpha_start=1.0))
    layer = expanded_layers(model)[0]
    assert update_size(layer).item() == 0.0
    perturb(model)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    merged = dict(ctrl.merge_back(model).get_decoder().named_parameters())
    prefix = next(name for name, p in merged.items() if ".1." in name).partition(".1.")[0] + ".1."
    pairs = [(before[name.removeprefix(prefix)], p) for name, p in merged.items() if name.startswith(prefix)]
    change, size = (sum(x.square().sum() for x in xs) for xs in ([e - w for w, e in pairs], [w for w, _ in pairs]))
    assert update_size(layer).item() == pytest.approx((change / size).sqrt().item(), rel=1e-4)


def test_masks_by_layer_type_do_not_name_padding() -> None:
    """Gemma's forward takes a dict of 4-D masks: all tokens count, with labels and in the log."""
    model = ctrl.expand(build("gemma2"), ctrl.ControlConfig(layers=2))
    perturb(model)
    inputs = left_padded(pads=0)
    barred = torch.full((2, 1, 12, 12), torch.finfo(torch.float32).min)
    masks = {"full_attention": barred.triu(1), "sliding_attention": barred.triu(1) + barred.tril(-WINDOW)}
    with ctrl.diagnostics(model) as log:
        out = model(**labelled(inputs) | {"attention_mask": masks})
    torch.testing.assert_close(out.divergence, model(**labelled(inputs)).divergence)
    assert sum(log.mean("divergence").values()) / 2 == pytest.approx(out.divergence.item(), rel=1e-5)

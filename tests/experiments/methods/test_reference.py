"""The base model next to the one that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.measure.callback import _as_base
from experiments.methods import TUNINGS
from experiments.methods.parts import read_part
from experiments.methods.reference import Reference, has_base, keeps_base
from experiments.methods.weights import trainable
from tests.helpers.engine import TUNED, context
from tests.helpers.tiny_llama import tiny


@pytest.mark.parametrize("train", TUNED)
def test_it_stays_the_base_and_only_models_that_lost_it_are_copied(train: str) -> None:
    model = read_part(TUNINGS, TUNED[train]).prepare(tiny(), context())
    reference, batch = Reference(model, context()), {"input_ids": torch.arange(12)[None]}
    assert (reference.copy is None) == reference.shares_weights == has_base(model)
    assert has_base(model) == (train in ("control", "stack", "lora"))
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.05 * torch.randn_like(p))
    expected = tiny().eval()(**batch).logits
    counted = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    for by_states in (True, False):
        reference.by_states = by_states
        found = reference.read(model, batch, counted)
        torch.testing.assert_close(found.logits(), expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.logits(slice(3, 7)), expected[0, 3:7], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.eval()(**batch).logits, expected, atol=1e-3)


@pytest.mark.parametrize("train", ["full", "control", "lora"])
def test_it_has_no_dropout_while_the_model_trains_with_it(train: str) -> None:
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=4, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5)
    model = read_part(TUNINGS, TUNED[train]).prepare(GPT2LMHeadModel(config), context()).train()
    reference = Reference(model, context())
    batch = {"input_ids": torch.arange(20)[None], "labels": torch.arange(20)[None]}
    found = []
    for _ in range(2):
        found.append(reference.read(model, batch, torch.ones_like(batch["input_ids"], dtype=torch.bool)).logits())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(model(batch["input_ids"]).logits, model(batch["input_ids"]).logits)  # its mode is back


@pytest.mark.parametrize(
    ("fields", "kept"), [({}, True), ({"bias": "all"}, False), ({"init_lora_weights": "pissa"}, False)]
)
def test_adapters_that_change_the_base_itself_are_no_base_when_switched_off(fields: dict[str, Any], kept: bool) -> None:
    """Biases of the base train with `bias: all`, and the reference would train with them."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    part = {"peft": {"type": "lora", "r": 2, "target_modules": ["c_attn"], **fields}}
    base = GPT2LMHeadModel(shape).eval()
    batch = {"input_ids": torch.arange(20)[None]}
    expected = base(**batch).logits[0].detach()
    model = read_part(TUNINGS, part).prepare(base, context())
    reference = Reference(model, context())
    assert keeps_base(model) is has_base(model) is reference.shares_weights is kept
    with _as_base(model):  # of ForgettingCallback, at the start
        torch.testing.assert_close(model.eval()(**batch).logits[0], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.1)
    found = reference.read(model, batch, torch.ones_like(batch["input_ids"], dtype=torch.bool)).logits()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

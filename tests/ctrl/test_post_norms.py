"""Stacked copies of layers that end in a norm stay next to the identity after the first steps."""

from __future__ import annotations

import warnings
from typing import Literal

import pytest
import torch

import ctrl
from ctrl.config import ControlConfig
from ctrl.layer import expanded_layers
from tests.helpers.families import build, labelled, left_padded

STEP = 1e-5


@pytest.mark.parametrize("structure", ["stack", "hybrid"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_the_first_step_moves_a_stacked_copy_by_little(family: str, structure: Literal["stack", "hybrid"]) -> None:
    """The norms of gemma2 and olmo2 follow the projections: at full length the logits move by a tenth, or more."""
    model, batch = build(family), labelled(left_padded(pads=0))
    before = model(**batch).logits
    ctrl.expand(model, ControlConfig(structure=structure, layers=2))
    assert torch.equal(model(**batch).logits, before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=STEP, weight_decay=0)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
    assert 0 < (model(**batch).logits - before).norm() / before.norm() < 2e-3
    stacked = [layer.expanded for layer in expanded_layers(model) if layer.kind == "stack"]
    assert all(p.grad.any() for copied in stacked for n, p in copied.named_parameters() if n.endswith("proj.weight"))


def test_a_new_stacked_copy_counts_as_not_trained() -> None:
    model = ctrl.expand(build("gemma2"), ControlConfig(structure="stack", layers=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.reference(model)


def test_a_norm_that_could_not_leave_its_start_keeps_its_length() -> None:
    """In bf16 the numbers next to -1, at which Gemma's norm returns 0, are .004 away: no step would ever reach them."""
    model = ctrl.expand(build("gemma2").bfloat16(), ControlConfig(structure="stack", layers=2, copies_dtype="base"))
    copied = expanded_layers(model)[0].expanded
    assert (copied.post_attention_layernorm.weight != -1).any()
    assert not copied.self_attn.o_proj.weight.any()


@pytest.mark.parametrize(("family", "structure"), [("gemma2", "stack"), ("gemma2", "concat"), ("llama", "stack")])
def test_a_training_from_such_a_start_is_said_once(family: str, structure: Literal["stack", "concat"]) -> None:
    model, batch = build(family).train(), labelled(left_padded(pads=0))
    ctrl.expand(model, ControlConfig(structure=structure, layers=2))
    for norm in (m for m in model.modules() if "norm" in type(m).__name__.lower() and family == "gemma2"):
        norm.weight.data.masked_fill_(norm.weight != -1, 0)  # at 0 those of gemma have length 1
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(**batch)
    said = [str(w.message) for w in seen if "these layers end in a norm" in str(w.message)]
    assert len(said) == ((family, structure) == ("gemma2", "stack"))

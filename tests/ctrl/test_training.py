"""What a training pass trains: copies that are frozen, references that would move, gradients that were dropped."""

from __future__ import annotations

import pytest
import torch

import ctrl
from tests.helpers.tiny_llama import expanded, sequences


def test_reentrant_checkpointing_is_refused_and_the_other_gives_the_same_gradients() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    plain, checkpointed = expanded().train(), expanded().train()
    plain(**batch).loss.backward()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed(**batch).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.requires_grad:
            assert q.grad is not None, name
            torch.testing.assert_close(q.grad, p.grad, msg=name)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    checkpointed.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        checkpointed(**batch)


def test_a_loss_without_a_path_to_the_copies_is_no_fault_of_checkpointing() -> None:
    """Nothing trains but the head, or one gate: the divergence has no gradient, and needs none."""
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    for trains in ("lm_head", "3.interpolation"):
        model = expanded(interpolation="dlerpin", alpha="learned").train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains in name)
        for _ in range(2):
            model(**batch).loss.backward()
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
            model.zero_grad()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def test_a_pass_that_trains_no_copy_is_said_once() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    model = expanded().train().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.warns(UserWarning, match="no copy trains: all their parameters are frozen"):
        model(**batch)
    assert model.control.looked


def test_a_weight_that_a_reference_shares_and_that_trains_is_named() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    model = expanded().train()
    plain = ctrl.reference(model)
    model.lm_head.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"lm_head.weight trains, and the model of ctrl.reference shares it"):
        model(**batch)
    assert plain.lm_head.weight is model.lm_head.weight

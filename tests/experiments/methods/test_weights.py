"""Weights by name: copies, and swapping them for a while."""

from __future__ import annotations

import pytest
import torch

from experiments.methods.weights import shard_like, snapshot, swap_weights, trainable
from tests.helpers.tiny_llama import expanded, tiny


def test_a_snapshot_holds_what_trains_and_does_not_follow_it() -> None:
    model = expanded()
    copies = snapshot(model)
    assert set(copies) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(copies) < len(list(model.named_parameters()))
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(1.0)
    assert all(not torch.equal(copies[name], p) for name, p in trainable(model).items())
    assert shard_like(copies, model) is copies  # no shards: nothing to do


def test_swapped_weights_are_back_after_the_block_even_after_an_error() -> None:
    model = tiny()
    before, tensors = snapshot(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    other = {name: torch.full_like(value, 0.5, dtype=torch.float64) for name, value in before.items()}

    def inside() -> None:
        with swap_weights(model, other):
            assert all(p.dtype == torch.float32 and bool((p == 0.5).all()) for p in model.parameters())
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        inside()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == tensors

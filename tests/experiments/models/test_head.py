"""What the output head of a causal LM reads, and at which positions it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from experiments.models.head import inner, intercepted, only_label_logits, why_whole
from tests.helpers.tiny_llama import tiny


def test_labels_are_shifted_and_positions_without_one_are_left_out() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, 7, -100, 8, -100]])
    asked = only_label_logits({"labels": labels})
    assert asked["logits_to_keep"].tolist() == [0, 1, 2]
    assert asked["shift_labels"].tolist() == [[-100, 5, 6], [7, -100, 8]]


def test_logits_of_a_plain_head_are_its_product_and_others_are_named() -> None:
    model: Any = tiny()
    assert why_whole(model) is None
    assert inner(model) is model
    model.lm_head = nn.Sequential(model.lm_head)
    assert "output head is a Sequential" in str(why_whole(model))


def test_head_and_loss_are_put_back_after_an_error() -> None:
    model: Any = tiny()
    own = model.loss_function
    with pytest.raises(TypeError, match="NoneType"), intercepted(model, model.lm_head, lambda head, args: args, None):
        model(**only_label_logits({"input_ids": torch.ones(1, 4).long(), "labels": torch.ones(1, 4).long()}))
    assert model.loss_function is own
    assert not model.lm_head._forward_pre_hooks

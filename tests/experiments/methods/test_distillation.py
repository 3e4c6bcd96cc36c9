"""Distillation from the base: restated token by token, in the value and the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.methods import LOSS_TERMS, Tokens
from experiments.methods.distillation import swapped
from experiments.methods.parts import read_part
from tests.helpers.engine import context
from tests.helpers.tiny_llama import tiny

COUNT, WORDS = 12, 9


class Fixed:
    """A base whose logits are known."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def logits(self, rows: slice) -> Tensor:
        return self.kept[rows]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of base and model, and labels of which some are the likeliest token of one, of both or of none."""
    torch.manual_seed(3)
    base, logits = (2 * torch.randn(COUNT, WORDS, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, WORDS, (COUNT,))
    labels[:3], labels[3:6] = base[:3].argmax(-1), logits[3:6].argmax(-1)
    return base, logits, labels


def found(name: str, weight: float, start: int = 0) -> tuple[float, Tensor]:
    """Value and slope of a term of the tokens from `start` on."""
    base, logits, labels = drawn()
    term: Any = read_part(LOSS_TERMS, {name: {"weight": weight}}).begin(tiny(), context())
    log_sum = logits.logsumexp(-1, keepdim=True)
    log_p = (logits - log_sum)[torch.arange(COUNT), labels]
    tokens = Tokens(log_p[start:], logits[start:], log_sum[start:], start)
    penalty = term.penalty_of(replace(tokens, noted=(Fixed(base), labels)))
    slope = torch.zeros(COUNT - start, WORDS, dtype=torch.float64).index_add_(0, penalty.rows, penalty.slope)
    return float(penalty.value), slope


def teacher(name: str, base: Tensor, own: Tensor, label: int) -> Tensor | None:
    """What one token learns from: a distribution over words, or nothing."""
    if name == "muscle":
        return None if int(own.argmax()) == label else base.softmax(-1)
    exchanged, best = base.tolist(), int(base.argmax())
    exchanged[best], exchanged[label] = exchanged[label], exchanged[best]
    return torch.tensor(exchanged, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("name", ["muscle", "logit_swap"])
def test_each_token_learns_from_its_teacher(name: str, start: int) -> None:
    base, logits, labels = drawn()
    leaf = logits[start:].clone().requires_grad_()
    total, taught = leaf.new_zeros(()), 0
    for row, own, label in zip(base[start:], leaf, labels[start:].tolist(), strict=True):
        q = teacher(name, row, own.detach(), label)
        if q is not None:
            total, taught = total + 0.5 * (q * (q.log() - own.log_softmax(-1))).sum(), taught + 1
    (slope,) = torch.autograd.grad(total, leaf)
    value, its = found(name, 0.5, start)
    assert value == pytest.approx(float(total))
    torch.testing.assert_close(its, slope)
    assert 0 < taught < COUNT - start + (name == "logit_swap")


def test_muscle_leaves_a_model_alone_that_is_right_everywhere() -> None:
    base, logits, _ = drawn()
    term: Any = read_part(LOSS_TERMS, "muscle").begin(tiny(), context())
    log_sum = logits.logsumexp(-1, keepdim=True)
    tokens = Tokens(logits[:, 0], logits, log_sum, noted=(Fixed(base), logits.argmax(-1)))
    assert term.penalty_of(tokens) is None


def test_swapped_logits_put_the_label_first_and_keep_all_values() -> None:
    base, _, labels = drawn()
    before = base.clone()
    after = swapped(base, labels)
    assert torch.equal(after.argmax(-1), labels)
    assert torch.equal(after.sort(-1).values, base.sort(-1).values)
    assert torch.equal(after[:3], base[:3])  # right already
    assert torch.equal(base, before)

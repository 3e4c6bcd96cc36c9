"""Hooks in training: those that a class does not override do nothing."""

from __future__ import annotations

import pytest
import torch

from experiments.methods import AVERAGES, LOSS_TERMS, Tokens
from experiments.methods.active import ActiveAverage, ActiveTerm
from experiments.methods.parts import PARTS, read_part
from experiments.methods.weights import trainable
from tests.helpers.engine import context
from tests.helpers.tiny_llama import tiny


def tokens(start: int = 0) -> Tokens:
    return Tokens(torch.zeros(3), torch.zeros(3, 5), torch.zeros(3, 1), start)


def test_tokens_know_where_they_are_in_the_pass() -> None:
    assert torch.arange(10)[tokens(4).rows].tolist() == [4, 5, 6]


@pytest.mark.parametrize("name", [n for n in LOSS_TERMS if not read_part(LOSS_TERMS, n).weighs_tokens])
def test_terms_without_weights_have_none(name: str) -> None:
    term = read_part(LOSS_TERMS, name).begin(tiny(), context())
    assert term.token_weights(torch.zeros(3)) is None
    assert term.weights_of(tokens()) is None


def test_the_base_classes_do_nothing() -> None:
    term, average, model = ActiveTerm(), ActiveAverage(), tiny()
    assert term.begin_pass(model, {}) is None
    assert term.penalty(model, {}, None, None) is None
    assert term.penalty_of(tokens()) is None
    assert term.state() == average.state() == {}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    average.after_step(model, 1)
    with average.evaluated(model):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", [*LOSS_TERMS, *AVERAGES])
def test_the_plan_counts_what_a_part_keeps(name: str) -> None:
    part, model = read_part(PARTS, name), tiny()
    mine = {id(p) for p in model.parameters()}
    held = [value for value in vars(part.begin(model, context())).values() if isinstance(value, dict)]
    kept = [t for values in held for t in values.values() if isinstance(t, torch.Tensor) and id(t) not in mine]
    assert sum(t.nbytes for t in kept) == part.kept_copies * sum(4 * p.numel() for p in trainable(model).values())

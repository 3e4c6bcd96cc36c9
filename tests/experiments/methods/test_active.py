"""Hooks in training: those that a class does not override do nothing."""

from __future__ import annotations

import pytest
import torch

from experiments.methods import LOSS_TERMS, Tokens
from experiments.methods.active import ActiveAverage, ActiveTerm
from experiments.methods.parts import read_part
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

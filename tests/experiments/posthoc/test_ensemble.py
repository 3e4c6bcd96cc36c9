"""An ensemble of models: the formula, restated token by token, and how it is read."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import ctrl
from experiments.evaluation.reply_log_probs import fp32_head
from experiments.models.reading import own_replies, reading
from experiments.posthoc.ensemble import largest, together
from tests.helpers.tiny_llama import tiny

IDS = torch.tensor([[5, 9, 2, 7, 11, 3]])


def other() -> Any:
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def test_the_largest_probability_counts() -> None:
    a, b = (torch.tensor(rows) for rows in ([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    found = largest([a.log() + 3, b.log()]).exp()  # logits may have any offset
    for one, two, row in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        best = [max(pair) for pair in zip(one, two, strict=True)]
        assert row == pytest.approx([value / sum(best) for value in best])


def test_a_model_with_itself_predicts_as_before() -> None:
    alone, logits = tiny().eval(), tiny().eval()(IDS).logits
    torch.testing.assert_close(together(alone, [tiny()]).eval()(IDS).logits, logits.log_softmax(-1))
    ensemble = together(other(), [other()])
    for head in (lambda model: nullcontext(), fp32_head):  # logits are rounded to bf16, or not, in all its models
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), head(one := other()), head(ensemble):
            assert torch.equal(ensemble(IDS).logits, one(IDS).logits.float().log_softmax(-1).log_softmax(-1))


@pytest.mark.parametrize("expanded", [False, True])
def test_it_reads_all_its_models(expanded: bool) -> None:
    own = tiny()
    if expanded:
        own = ctrl.expand(own, ctrl.ControlConfig(layers=2))
    parts = [own.eval()(IDS).logits, other()(IDS).logits]
    size = own.num_parameters()
    ensemble = together(own, [other()]).eval()
    assert torch.equal(ensemble(input_ids=IDS).logits, largest(parts))
    assert ensemble.num_parameters() == size + other().num_parameters()
    again = pickle.loads(pickle.dumps(copy.deepcopy(ensemble)))
    assert torch.equal(again(IDS).logits, largest(parts))


def test_it_has_no_cache_and_the_bench_finds_that() -> None:
    ensemble = together(tiny(), [other()]).eval()
    cache = tiny()(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="an ensemble of models has no cache, call it with use_cache=False"):
        ensemble(IDS, past_key_values=cache)
    found = reading(ensemble)
    assert found.pads
    assert not found.caches


@torch.no_grad()
def test_its_replies_are_its_likeliest_tokens() -> None:
    parts, prompt = (tiny().eval(), other()), IDS[0].tolist()
    expected = list(prompt)
    for _ in range(3):
        logits = largest([part(torch.tensor([expected])).logits for part in parts])
        expected.append(int(logits[0, -1].argmax()))
    replies = own_replies(together(tiny(), [other()]).eval(), [prompt], 3, [parts[0].config.vocab_size])
    assert replies == [expected[len(prompt) :]]

"""KL against its definition, on log-probabilities that are those of each text alone."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from experiments.evaluation.reply_log_probs import Reply, fp32_head, kl_per_token, reply_log_probs
from tests.helpers.option_scores import BF16, expanded, sharp


def some_replies() -> list[Reply]:
    rng = random.Random(0)
    return [
        Reply(tuple(rng.randrange(97) for _ in range(n)), tuple(rng.randrange(97) for _ in range(t)))
        for n, t in ((3, 5), (9, 1), (4, 12), (7, 7))
    ]


@pytest.mark.parametrize("build", [sharp, expanded])
def test_log_probabilities_are_those_of_each_text_alone(build: type) -> None:
    model, replies = build(), some_replies()
    got = dict(reply_log_probs(model, replies))
    for i, reply in enumerate(replies):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([reply.prompt + reply.reply]), use_cache=False).logits[0]
        expected = logits[len(reply.prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(got[i], expected, atol=1e-4, rtol=0)


def test_kl_against_the_definition() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = (ln 2 + ln 2/3) / 2 = ln(4/3) / 2."""
    p, q = torch.tensor([[0.5, 0.5]] * 20).log(), torch.tensor([[0.25, 0.75]] * 20).log()
    assert kl_per_token(p, q) == pytest.approx(math.log(4 / 3) / 2, abs=1e-6)
    assert kl_per_token(q, p) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)


def test_kl_to_itself_is_zero_and_to_another_model_is_not() -> None:
    replies = some_replies()
    base, same, other = (dict(reply_log_probs(m, replies)) for m in (sharp(), sharp(), sharp(seed=1)))
    assert [kl_per_token(base[i], same[i]) for i in base] == [0.0] * 4
    assert min(kl_per_token(base[i], other[i]) for i in base) > 0.1


def test_kl_of_impossible_tokens() -> None:
    """0 log 0 = 0; a token that the base gives and the tuned model never gives is infinitely far."""
    p, q = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_per_token(p, q) == pytest.approx(math.log(2))
    assert kl_per_token(q, p) == math.inf
    assert math.isnan(kl_per_token(q, torch.full((1, 2), math.nan)))


@pytest.mark.parametrize("more", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_changes_nothing_has_no_kl(more: dict[str, Any]) -> None:
    """Its head is no Linear: in bf16 it was compared with the fp32 logits of the base."""
    replies, config = some_replies(), LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **more})
    adapted: Any = get_peft_model(sharp(), config).eval()
    with BF16.autocast():
        base, tuned = (dict(reply_log_probs(model, replies)) for model in (sharp(), adapted))
        assert [kl_per_token(base[i], tuned[i]) for i in base] == [0.0] * 4
        assert adapted(torch.arange(8)[None]).logits.dtype == torch.bfloat16


def test_what_was_called_in_place_of_the_head_is_again() -> None:
    model = sharp()
    own: Any = model.lm_head
    called = own.forward = lambda hidden: torch.nn.functional.linear(hidden, own.weight) + 1
    with fp32_head(model):
        shifted = model(torch.arange(8)[None]).logits
    assert own.forward is called
    del own.forward
    torch.testing.assert_close(shifted, model(torch.arange(8)[None]).logits + 1)


def test_fp32_head_inside_autocast() -> None:
    model, ids = sharp(), torch.arange(8)[None]
    with torch.no_grad(), BF16.autocast():
        assert model(ids).logits.dtype == torch.bfloat16
        with fp32_head(model):
            inside = model(ids).logits
        assert model(ids).logits.dtype == torch.bfloat16
        hidden = model.model(ids).last_hidden_state
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, hidden.float() @ model.lm_head.weight.T)

"""KL against its definition, and the prompts that replies are drawn to."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.sources import ReasoningGym
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, draw_questions
from experiments.evaluation.suites import SUITES
from experiments.evaluation.suites.drift import PROMPTS, DriftSuite, Reply, fp32_head, kl_per_token, reply_log_probs
from experiments.evaluation.suites.text import text_windows
from tests.helpers.new_tasks import NOTES, sums
from tests.helpers.option_scores import BF16, expanded, sharp
from tests.helpers.small_run import make_suite, small_config


class TestDrift:
    def replies(self) -> list[Reply]:
        rng = random.Random(0)
        return [
            Reply(tuple(rng.randrange(97) for _ in range(n)), tuple(rng.randrange(97) for _ in range(t)))
            for n, t in ((3, 5), (9, 1), (4, 12), (7, 7))
        ]

    @pytest.mark.parametrize("build", [sharp, expanded])
    def test_log_probabilities_are_those_of_each_text_alone(self, build: type) -> None:
        model, replies = build(), self.replies()
        got = dict(reply_log_probs(model, replies))
        for i, reply in enumerate(replies):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([reply.prompt + reply.reply]), use_cache=False).logits[0]
            expected = logits[len(reply.prompt) - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(got[i], expected, atol=1e-4, rtol=0)

    def test_kl_against_the_definition(self) -> None:
        """p = (1/2, 1/2), q = (1/4, 3/4): KL = (ln 2 + ln 2/3) / 2 = ln(4/3) / 2."""
        p, q = torch.tensor([[0.5, 0.5]] * 20).log(), torch.tensor([[0.25, 0.75]] * 20).log()
        assert kl_per_token(p, q) == pytest.approx(math.log(4 / 3) / 2, abs=1e-6)
        assert kl_per_token(q, p) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)

    def test_kl_to_itself_is_zero_and_to_another_model_is_not(self) -> None:
        replies = self.replies()
        base, same, other = (dict(reply_log_probs(m, replies)) for m in (sharp(), sharp(), sharp(seed=1)))
        assert [kl_per_token(base[i], same[i]) for i in base] == [0.0] * 4
        assert min(kl_per_token(base[i], other[i]) for i in base) > 0.1

    def test_kl_of_impossible_tokens(self) -> None:
        """0 log 0 = 0; a token that the base gives and the tuned model never gives is infinitely far."""
        p, q = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
        assert kl_per_token(p, q) == pytest.approx(math.log(2))
        assert kl_per_token(q, p) == math.inf
        assert math.isnan(kl_per_token(q, torch.full((1, 2), math.nan)))

    def test_fp32_head_inside_autocast(self) -> None:
        model, ids = sharp(), torch.arange(8)[None]
        with torch.no_grad(), BF16.autocast():
            assert model(ids).logits.dtype == torch.bfloat16
            with fp32_head(model):
                inside = model(ids).logits
            assert model(ids).logits.dtype == torch.bfloat16
            hidden = model.model(ids).last_hidden_state
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, hidden.float() @ model.lm_head.weight.T)

    def test_too_much_text_or_too_many_replies(self, base: str, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ConfigError, match=r"suites\.text\.tokens=1000000, but the text has only \d+ tokens"):
            text_windows(tokenizer, 1_000_000)
        config = small_config(base, evaluation={"replies": 100})
        with pytest.raises(ConfigError, match=rf"drift\.replies=100, but there are only {len(PROMPTS)} general"):
            make_suite(DriftSuite, config, tokenizer)


def test_drift_asks_several_new_tasks_in_turn(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = small_config(base, evaluation={"replies": 2, "new_replies": 3})
    first, second = sums(), ReasoningGym(name="basic_arithmetic").held_out(4, 0)
    suite: Any = make_suite(SUITES["drift"], config, tokenizer, (first, second, NOTES))
    assert [task for task, _, _ in suite.prompts] == ["base replies"] * 2 + ["new_prompts"] * 3
    assert [item for _, item, _ in suite.prompts[2:]] == [first.test[0].id, second.test[0].id, first.test[1].id]


def test_drift_reads_natural_text_and_kept_answers_as_they_are(
    base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    drift = {"replies": 1, "new_replies": 0, "reply_tokens": 4, "text_tokens": 300, "kept": 4}
    suite: Any = make_suite(DriftSuite, small_config(base, evaluation={"suites": {"drift": drift}}), tokenizer)
    with torch.no_grad():
        ready = suite.prepare(model, {}, None)
        same = list(ready.measure(model, lambda count: None))
        for p in model.parameters():
            p.mul_(1.1)
        records = list(ready.measure(model, lambda count: None))
    assert {record.value for record in same} == {0.0}
    counts = Counter(record.task for record in records)
    assert counts == {"base replies": 1, "text": 2, "kept plain": 16, "kept chat": 16}
    assert sum(record.tokens or 0 for record in records if record.task == "text") == 300 - 2
    assert all((record.value or 0) > 0 for record in records)
    assert ready.size == len(records) == len({(record.task, record.item) for record in records})
    assert len(ready.state()["replies"]) == 1  # what is given needs no state
    first = records[1]
    ids = torch.tensor([suite.given[0].reply.prompt + suite.given[0].reply.reply])
    with torch.no_grad():
        q = model(ids).logits[0, :-1].log_softmax(-1)
        for p in model.parameters():
            p.div_(1.1)
        p0 = model(ids).logits[0, :-1].log_softmax(-1)
    assert first.value == pytest.approx(float((p0.exp() * (p0 - q)).sum(-1).mean()), rel=1e-3)
    right = [one.reply.reply for one in suite.given if one.task == "kept plain"]
    answers = [question.template.right for question in draw_questions(DEFAULT_TASKS, 4, 0)]
    assert [str(tokenizer.decode(reply)).strip() for reply in right] == answers


def test_without_given_text_the_key_of_the_cache_is_that_of_earlier_versions(
    base: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain, more = ({"replies": 1, "new_replies": 0, "text_tokens": tokens} for tokens in (0, 64))
    keys = [
        make_suite(DriftSuite, small_config(base, evaluation={"suites": {"drift": one}}), tokenizer).content()
        for one in (plain, more)
    ]
    assert len(keys[0]) == 3
    assert keys[1][:3] == keys[0]


@pytest.mark.parametrize("tokens", [1, 63, -1])
def test_too_little_text_is_refused(tokens: int) -> None:
    with pytest.raises(ValidationError, match="text_tokens"):
        DriftSuite.Settings(text_tokens=tokens)

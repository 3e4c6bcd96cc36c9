"""Greedy replies against taking the best token by hand, and drawn ones against their probabilities."""

from __future__ import annotations

import collections
import math
import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import NotFinite
from experiments.models.generation import (
    Draw,
    by_length,
    draw_tokens,
    generate_ids,
    generate_replies,
    reply_ends,
    stopping,
)
from experiments.models.reading import Reading
from experiments.models.tokens import end_of_turn, prompt_ids
from tests.helpers.option_scores import expanded, random_choices, sharp


class TestGeneration:
    @pytest.mark.parametrize("build", [sharp, expanded])
    @pytest.mark.parametrize("batch_size", [2, 64])
    @pytest.mark.slow
    def test_equals_taking_the_best_token_by_hand(
        self, build: type, batch_size: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        model, most = build(), 17
        prompts = [choice.prompt for choice in random_choices((), 5)]
        end = end_of_turn(tokenizer)
        expected = []
        for prompt in prompts:
            text = list(prompt)
            while len(text) < len(prompt) + most and end not in text[len(prompt) :]:
                with torch.no_grad():
                    text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
            expected.append(text[len(prompt) :])
        assert generate_ids(model, tokenizer, prompts, most, batch_size) == expected
        assert len({tuple(reply) for reply in expected}) > 1

    def test_stops_at_the_end_of_turn(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        end = end_of_turn(tokenizer)
        prompts = [prompt_ids(tokenizer, question) for question in ("a", "b c d")]
        with torch.no_grad():
            model.lm_head.weight.zero_()  # all logits 0, the argmax is token 0 ...
        assert generate_ids(model, tokenizer, prompts, 3) == [[0] * 3] * 2
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()[end] = 1.0  # ... and now the end of turn
        assert generate_ids(model, tokenizer, prompts, 3) == [[end]] * 2
        assert generate_replies(model, tokenizer, ["a", "b c d"], 3) == ["", ""]

    @pytest.mark.parametrize("caches", [True, False])
    def test_stops_at_each_end_of_the_model_that_is_special(
        self, caches: bool, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any
    ) -> None:
        """Llama 3 and Qwen name two: after the other one, a model would write on into another text."""
        monkeypatch.setattr("experiments.models.generation.reading", lambda _: Reading(caches, False, False))
        end, other = end_of_turn(tokenizer), tokenizer.convert_tokens_to_ids("<|endoftext|>")
        prompts = [prompt_ids(tokenizer, question) for question in ("a", "b c d")]
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()[other] = 1.0
        assert generate_ids(model, tokenizer, prompts, 3) == [[other] * 3] * 2
        model.generation_config.eos_token_id = [500, other]
        assert reply_ends(model, tokenizer) == [end, other]  # 500 is a word
        assert generate_ids(model, tokenizer, prompts, 3) == [[other]] * 2
        with stopping(model, tokenizer):
            assert model.generation_config.eos_token_id == [end, other]
        assert model.generation_config.eos_token_id == [500, other]

    @pytest.mark.parametrize("how", ["greedy", "drawn", "no cache", "alone"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_logits_that_are_not_finite_are_no_reply(
        self, how: str, value: float, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any
    ) -> None:
        if how in ("no cache", "alone"):
            monkeypatch.setattr(
                "experiments.models.generation.reading", lambda _: Reading(how == "no cache", False, False)
            )
            monkeypatch.setattr(
                "experiments.models.reading.reading", lambda _: Reading(how == "no cache", False, False)
            )
        draw = Draw(1.0, ["a", "b"]) if how == "drawn" else None
        prompts = [prompt_ids(tokenizer, question) for question in ("a", "b c d")]
        if draw is None:
            assert all(generate_ids(model, tokenizer, prompts, 3))
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        with torch.no_grad():
            model.lm_head.bias.fill_(-math.inf)[5] = 0.0  # tokens that never come are no fault
        assert generate_ids(model, tokenizer, prompts, 2, draw=draw) == [[5, 5]] * 2
        with torch.no_grad():
            model.lm_head.bias[7] = value
        with pytest.raises(
            NotFinite, match="logits are not finite, so nothing can be measured: lower the learning rate"
        ):
            generate_ids(model, tokenizer, prompts, 2, draw=draw)

    def test_replies_of_all_lengths(self, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
        """A token that a random model often gives ends a reply here, so that rows leave the batch one after another."""
        model, prompts = sharp(), [choice.prompt for choice in random_choices(range(20), 40)]
        whole = generate_ids(model, tokenizer, prompts, 12)
        common = collections.Counter(token for reply in whole for token in reply[3:]).most_common(1)[0][0]
        monkeypatch.setattr("experiments.models.generation.end_of_turn", lambda tokenizer: common)
        cut = [reply[: reply.index(common) + 1] if common in reply else reply for reply in whole]
        assert len({len(reply) for reply in cut}) >= 4
        assert generate_ids(model, tokenizer, prompts, 12) == cut

    def test_tokens_are_drawn_with_their_probabilities(self) -> None:
        logits = torch.tensor([1.0, -1e4, 2.0, 0.0])
        drawn = draw_tokens(logits.expand(4000, 4), 0.5, [random.Random(f"seed {i}") for i in range(4000)])
        weights = [math.exp(logit / 0.5) for logit in (1.0, -1e4, 2.0, 0.0)]
        for token, weight in enumerate(weights):  # a standard deviation is at most .008
            assert float((drawn == token).float().mean()) == pytest.approx(weight / sum(weights), abs=0.03)
        assert not (drawn == 1).any()

    def test_what_is_drawn_does_not_depend_on_the_batch(
        self, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, prompts = sharp(), [choice.prompt for choice in random_choices(range(20), 12)]
        draw = Draw(1.0, [str(i) for i in range(12)])
        whole = generate_ids(model, tokenizer, prompts, 12, draw=draw)
        greedy = generate_ids(model, tokenizer, prompts, 12)
        assert whole != greedy
        common = collections.Counter(token for reply in whole for token in reply[3:]).most_common(1)[0][0]
        monkeypatch.setattr("experiments.models.generation.end_of_turn", lambda tokenizer: common)
        cut = [reply[: reply.index(common) + 1] if common in reply else reply for reply in whole]
        assert len({len(reply) for reply in cut}) >= 2  # rows leave the batch one after another
        assert generate_ids(model, tokenizer, prompts, 12, draw=draw) == cut
        assert generate_ids(model, tokenizer, prompts[3:5], 12, draw=Draw(1.0, ["3", "4"])) == cut[3:5]
        monkeypatch.undo()
        assert generate_ids(model, tokenizer, prompts, 12, draw=Draw(1e-6, draw.seeds)) == greedy

    def test_every_reply_is_counted_once(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        seen: list[int] = []
        generate_replies(model, tokenizer, ["a", "b", "c"], 14, batch_size=2, progress=seen.append)
        assert sum(seen) == 3

    def test_batches_are_sorted_and_complete(self) -> None:
        batches = list(by_length([3, 9, 1, 7, 5], 2))
        assert batches == [[1, 3], [4, 0], [2]]

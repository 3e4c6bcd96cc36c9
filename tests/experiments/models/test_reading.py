"""Prompts read together give the replies and scores of each prompt alone, in all kinds of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

import ctrl
from experiments.data.sampling import Sampling, sample_chats
from experiments.evaluation.multiple_choice import score_options
from experiments.evaluation.reply_log_probs import Reply, reply_log_probs
from experiments.models.generation import generate_ids
from experiments.models.modes import evaluating
from experiments.models.reading import Reading, choices_of, own_replies, reading, windows
from tests.helpers.byte_level import byte_llama, byte_tokenizer
from tests.helpers.families import EVERY, WINDOW, build
from tests.helpers.option_scores import BF16, largest_gap, naive_scores, random_choices, sharp
from tests.helpers.readers import build_other

SLOW = pytest.mark.slow
START = tuple(range(20, 60))  # enough to be read once for all prompts
READINGS = {
    "opt": Reading(True, True, True),
    "bloom": Reading(True, True, True),
    "mpt": Reading(True, True, False),
    "lfm2": Reading(True, True, False),
    "qwen3_next": Reading(True, True, False),
    "granite": Reading(True, True, False),
    "mamba": Reading(True, False, False),
    "minimax": Reading(True, False, False),
    "recurrent_gemma": Reading(False, False, False),
    "rwkv": Reading(False, False, False),
}
UNIT = ("mpt", "lfm2", "mamba", "recurrent_gemma")
NAMES = [name if name in UNIT else pytest.param(name, marks=SLOW) for name in READINGS]


@torch.no_grad()
def by_hand(model: PreTrainedModel, prompt: Sequence[int], most: int, end: int) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + most and end not in text[len(prompt) :]:
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", [(), START], ids=["no shared start", "shared start"])
class TestOtherArchitectures:
    def test_replies_are_those_of_each_prompt_alone(self, name: str, start: tuple[int, ...]) -> None:
        model = build_other(name)
        model.generation_config.eos_token_id = None  # a tiny config names any token, and replies would end there too
        prompts = [(*start, *choice.prompt) for choice in random_choices((), 6)]
        end = by_hand(model, prompts[0], 3, -1)[-1]  # so some replies end before others
        tokenizer = byte_tokenizer(None)
        tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(end))
        expected = [by_hand(model, prompt, 8, end) for prompt in prompts]
        assert generate_ids(model, tokenizer, prompts, 8) == expected
        assert reading(model) == READINGS[name]

    def test_scores_are_those_of_each_option_alone(self, name: str, start: tuple[int, ...]) -> None:
        model, choices = build_other(name), random_choices(start, 5)
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    def test_log_probs_are_those_of_each_reply_alone(self, name: str, start: tuple[int, ...]) -> None:
        model = build_other(name)
        replies = [Reply((*start, *choice.prompt), choice.options[0]) for choice in random_choices((), 4)]
        for i, found in reply_log_probs(model, replies):
            (alone,) = (one for _, one in reply_log_probs(model, [replies[i]]))
            assert torch.allclose(found, alone, atol=1e-4)


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("expanded", [False, True], ids=["base", "expanded"])
def test_the_families_can_read_in_every_way(family: str, expanded: bool) -> None:
    """But for a shared start before padding that fills a sliding window."""
    model = build(family)
    slides = getattr(model.config, "sliding_window", None) == WINDOW
    if expanded:
        ctrl.expand(model, ctrl.ControlConfig(layers=2))
    assert reading(model.eval()) == Reading(True, True, not slides)


def test_rounding_and_a_diverged_model_change_nothing() -> None:
    model = sharp()
    with evaluating(model, BF16):
        assert reading(model) == Reading(True, True, True)
    broken = sharp()
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    assert reading(broken) == Reading(True, True, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt_neo", {"window_size": 256}), ("recurrent_gemma", {"attention_window_size": 64}), ("opt", {})],
)
def test_windows(name: str, expected: dict[str, Any]) -> None:
    assert windows(build_other(name)) == expected


def test_a_shared_start_would_fill_a_window_that_slides() -> None:
    """Padding comes after it, so the shortest prompt would see less of it."""
    model = build("mistral")
    prompts = [(*START[:20], *choice.prompt) for choice in random_choices((), 6)]
    assert generate_ids(model, byte_tokenizer(None), prompts, 6) == [by_hand(model, p, 6, 259) for p in prompts]


def test_text_is_written_by_the_settings_that_are_given_alone() -> None:
    """Qwen 2.5 has a penalty on repetition in its generation_config.json, with which `self` was sampled."""
    tokenizer = byte_tokenizer()
    model = byte_llama(len(tokenizer)).eval()
    own = {"repetition_penalty": 1e4, "suppress_tokens": list(range(97, 123)), "min_p": 0.9}
    settings = [GenerationConfig(eos_token_id=1), GenerationConfig(eos_token_id=1, **own)]
    written = []
    for one in settings:
        model.generation_config = one
        chats = list(sample_chats(model, tokenizer, Sampling(number=3, max_tokens=8), "fp32"))
        written.append((chats, own_replies(model, [[5, 6, 7]], 8, [1])))
        assert model.generation_config is one
    assert written[0] == written[1]
    assert choices_of(settings[1].to_dict()) == sorted(own)
    assert choices_of(settings[0].to_dict()) == []

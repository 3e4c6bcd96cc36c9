"""Tiny models whose predictions depend on everything before, and scores computed the slow way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import ctrl
from experiments.evaluation.multiple_choice import Choice
from experiments.models.precision import Precision

FP32, BF16 = Precision("fp32"), Precision("bf16")


def sharp(vocab: int = 97, seed: int = 0) -> PreTrainedModel:
    """A tiny Llama with wide weights: its predictions depend on every token and position before."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=2, eos_token_id=None, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def expanded() -> PreTrainedModel:
    """The same with copies that differ from their originals, so that a shared cache slot would show."""
    model = ctrl.expand(sharp(), ctrl.ControlConfig(layers=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_choices(prefix: Sequence[int], count: int, seed: int = 0) -> list[Choice]:
    """Prompts of 1-9 tokens behind the prefix; 2-4 options of 1-5 tokens."""
    rng = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(97) for _ in range(n))

    return [
        Choice((*prefix, *ids(rng.randint(1, 9))), tuple(ids(rng.randint(1, 5)) for _ in range(rng.randint(2, 4))))
        for _ in range(count)
    ]


@torch.no_grad()
def naive_scores(model: PreTrainedModel, choices: Sequence[Choice]) -> list[list[float]]:
    """One sequence per option, no cache, no padding."""
    scores = []
    for choice in choices:
        row = []
        for option in choice.options:
            text = torch.tensor([[*choice.prompt, *option]], device=model.device)
            log_probs = model(input_ids=text, use_cache=False).logits[0].float().log_softmax(-1)
            start = len(choice.prompt) - 1
            row.append(sum(float(log_probs[start + t, token]) for t, token in enumerate(option)) / len(option))
        scores.append(row)
    return scores


def largest_gap(left: list[list[float]], right: list[list[float]]) -> float:
    assert [len(row) for row in left] == [len(row) for row in right]
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))

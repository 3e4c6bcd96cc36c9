"""Tiny random models of the decoder families that ctrl supports: four layers, built in milliseconds, seeds fixed.

Weights are drawn wide (the default .02 gives near-uniform logits, in which an error could hide), norms and biases are
random too, windows are shorter than the texts. Expanding 2 of 4 layers takes 1 and 3; where a family mixes layer types
those two differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers import PreTrainedModel

VOCAB, PAD, WINDOW = 120, 0, 8
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,  # generation runs to its full length
}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def _llama() -> PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE))


def _mistral() -> PreTrainedModel:
    return tf.MistralForCausalLM(tf.MistralConfig(**SHAPE, sliding_window=WINDOW))


def _qwen2() -> PreTrainedModel:
    return tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED)
    )


def _qwen3() -> PreTrainedModel:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**SHAPE, head_dim=16))


def _gemma2() -> PreTrainedModel:
    config = tf.Gemma2Config(
        **SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=MIXED, hidden_activation="gelu"
    )
    return tf.Gemma2ForCausalLM(config)


def _gemma3_text() -> PreTrainedModel:
    config = tf.Gemma3TextConfig(
        **SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=MIXED, tie_word_embeddings=True
    )
    return tf.Gemma3ForCausalLM(config)


def _phi3() -> PreTrainedModel:
    return tf.Phi3ForCausalLM(tf.Phi3Config(**SHAPE, sliding_window=WINDOW))


def _olmo2() -> PreTrainedModel:
    return tf.Olmo2ForCausalLM(tf.Olmo2Config(**SHAPE))


def _smollm3() -> PreTrainedModel:
    return tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 1]))


def _gpt2() -> PreTrainedModel:
    config = tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=4, n_head=4, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=PAD, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def _gpt_neox() -> PreTrainedModel:
    shape = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**shape, rotary_pct=0.5, use_parallel_residual=True))


def _mixtral() -> PreTrainedModel:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mixtral": _mixtral,
}
# One of each kind is in the unit tier: rotary and tied, sliding layers and capped logits, learned positions, experts.
UNIT = ("llama", "gemma2", "gpt2")
EVERY = [name if name in UNIT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
STRUCTURES = ("concat", "stack", "hybrid")


def in_turn(turn: int) -> list[Any]:
    """Pairs of family and structure for a test: each structure of the families of UNIT, one of each other family.

    Another turn gives each of the others the next structure. Several tests with unlike turns have all pairs together.
    """
    pairs: list[Any] = [(name, structure) for name in UNIT for structure in STRUCTURES]
    others = [name for name in FAMILIES if name not in UNIT]
    given = [(name, STRUCTURES[(i + turn) % len(STRUCTURES)]) for i, name in enumerate(others)]
    return pairs + [pytest.param(*pair, marks=pytest.mark.slow) for pair in given]


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the family in eval mode; the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family]()
        randomize(model)
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Matrices get a standard deviation of .15, vectors (norms, biases) noise of .1 around their start."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.copy_(0.15 * noise)
        else:
            parameter.add_(0.1 * noise)


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 1, size: float = 0.1) -> None:
    """Move every trainable parameter, as training would: without it a copy that never runs looks right."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def left_padded(batch: int = 2, length: int = 12, pads: int = 4, seed: int = 3) -> dict[str, Tensor]:
    """Token ids and mask (batch, length); the last sequence has `pads` pad tokens in front."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, :pads], mask[-1, :pads] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def labelled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with their own tokens as labels; pads have none."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return {**inputs, "labels": labels}


@torch.no_grad()
def greedy_by_hand(model: PreTrainedModel, inputs: dict[str, Tensor], new_tokens: int) -> Tensor:
    """Greedy tokens (batch, length + new_tokens) from whole forward passes without any cache."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids

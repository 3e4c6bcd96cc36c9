"""Tiny random models of architectures that read a row in their own way: no positions, no mask, or one state for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.helpers.families import perturb

VOCAB = 264  # bytes and special tokens of tests.helpers.byte_level
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "bos_token_id": 256, "eos_token_id": 259,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 48}
XGLM = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}
# fmt: off
CONFIGS: dict[str, Callable[..., Any]] = {
    "opt": lambda **more: tf.OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32, **more),
    "falcon": lambda **more: tf.FalconConfig(**SHAPE, **more),
    "bloom": lambda **more: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **more),
    "mpt": lambda **more: tf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, **more),
    "gpt_oss": lambda **more: tf.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, **more),
    "gpt2": lambda **more: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=259, **more
    ),
    "gptj": lambda **more: tf.GPTJConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=256, eos_token_id=259, **more
    ),
    "codegen": lambda **more: tf.CodeGenConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=256, eos_token_id=259, **more
    ),
    "gpt_neo": lambda **more: tf.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        bos_token_id=256,
        eos_token_id=259,
        **more,
    ),
    "openai": lambda **more: tf.OpenAIGPTConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, **more),
    "xglm": lambda **more: tf.XGLMConfig(**XGLM, vocab_size=VOCAB, bos_token_id=256, eos_token_id=259, **more),
    "mamba": lambda **more: tf.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0, eos_token_id=259, **more
    ),
    "rwkv": lambda **more: tf.RwkvConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, bos_token_id=256, eos_token_id=259, **more
    ),
    "qwen3_next": lambda **more: tf.Qwen3NextConfig(
        **GROUPED, layer_types=["linear_attention", "full_attention"], head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, **more
    ),
    "granite": lambda **more: tf.GraniteMoeHybridConfig(
        **GROUPED, layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_chunk_size=16, num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=16, **more
    ),
    "recurrent_gemma": lambda **more: tf.RecurrentGemmaConfig(
        **GROUPED, block_types=["recurrent", "attention"], attention_window_size=64, lru_width=32, **more
    ),
    "minimax": lambda **more: tf.MiniMaxConfig(
        **GROUPED, layer_types=["linear_attention", "full_attention"], num_local_experts=2, head_dim=8, **more
    ),
    "llama4": lambda **more: tf.Llama4TextConfig(
        **GROUPED, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, **more
    ),
    "lfm2": lambda **more: tf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], **more),
}
# fmt: on


def build_other(name: str, **changes: Any) -> PreTrainedModel:
    """A random model in eval mode; changes: of its config."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = tf.AutoModelForCausalLM.from_config(CONFIGS[name](**changes))
    perturb(model, size=0.15)  # with narrow weights, logits hardly depend on the tokens before
    return model.eval()

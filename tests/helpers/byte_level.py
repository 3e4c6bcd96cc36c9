"""Tokenizers of bytes with any chat template and any added start or end, and folders of tiny bases with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# An empty think block before each reply; the switch writes it into the generation prompt too.
QWEN3 = CHATML.replace(
    "{{ m['content'] }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
).replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
# A think block that only the generation prompt opens.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}<|im_end|>"
    "{{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")  # ids 256 to 259


def byte_tokenizer(
    template: str | dict[str, str] | None = CHATML,
    bos: bool = False,
    eos_added: bool = False,
    eos: str = "<|im_end|>",
    extra: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """bos, eos_added: what it writes around every text. extra: added tokens that are not special."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in extra])
    if bos or eos_added:
        parts = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos_added)
        made.post_processor = processors.TemplateProcessing(single=parts, special_tokens=[("<s>", 256), ("</s>", 257)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def byte_llama(vocab: int, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocab, initializer_range=0.2, **{**shape, "num_key_value_heads": 2, **changes})
    return LlamaForCausalLM(config)


def byte_base(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, model: PreTrainedModel | None = None
) -> str:
    """Save a folder that `base_model:` can name."""
    tokenizer = tokenizer or byte_tokenizer()
    (model or byte_llama(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

"""Families of chat models: their template, what a reader knows of it, and a tokenizer that has it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.chat_templates import (
    ALPACA,
    COMMAND_R,
    DEEPSEEK2,
    DEEPSEEK3,
    FALCON3,
    GEMMA2,
    GEMMA3,
    GRANITE,
    LLAMA2,
    LLAMA3,
    LLAMA31,
    MISTRAL1,
    MISTRAL3,
    NEMOTRON,
    OLMO2,
    OPENCHAT,
    PHI3,
    PHI4,
    QWEN3,
    QWEN25,
    R1,
    SMOLLM2,
    SMOLLM3,
    TEKKEN,
    VICUNA,
    ZEPHYR,
)

IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


@dataclass(frozen=True)
class Family:
    """A template, and what a reader of it knows: the text around replies, what it refuses, and what it rewrites.

    specials: its special tokens. end: text after each reply that ends it; empty if only the eos can. opening: text
    before the last reply that is no part of the prompt. system, tools: whether it writes them. rewrites: earlier turns
    are written in another way once a later one follows. marked: whether it has {% generation %}.
    """

    template: str
    specials: tuple[str, ...] = ()
    end: str = "<|im_end|>"
    opening: str = ""
    eos: str = "</s>"
    system: bool = True
    tools: bool = False
    rewrites: bool = False
    marked: bool = False


FAMILIES = {
    "chatml": Family(CHATML, IM),
    "chatml-marked": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        marked=True,
    ),
    "chatml-marked-without-end": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        marked=True,
    ),
    "llama-2": Family(LLAMA2, end=" </s>", opening=" "),
    "llama-3": Family(LLAMA3, HEADERS, "<|eot_id|>"),
    "llama-3.1": Family(LLAMA31, HEADERS, "<|eot_id|>", tools=True),
    "qwen-2.5": Family(QWEN25, IM, tools=True),
    "qwen-3": Family(QWEN3, IM, opening="<think>\n\n</think>\n\n", tools=True, rewrites=True),
    "gemma-2": Family(GEMMA2, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", system=False),
    "gemma-2-marked": Family(
        GEMMA2.replace(
            "{{ m.content | trim }}<end_of_turn>",
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<end_of_turn>{% endgeneration %}"
            "{% else %}{{ m.content | trim }}<end_of_turn>{% endif %}",
        ),
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        system=False,
        marked=True,
    ),
    "gemma-3": Family(GEMMA3, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "mistral-1": Family(MISTRAL1, end="</s>", system=False),
    "mistral-3": Family(
        MISTRAL3, ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"), "</s>", tools=True, rewrites=True
    ),
    "mistral-tekken": Family(TEKKEN, ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "</s>"),
    "phi-3": Family(PHI3, PHI, "<|end|>"),
    "phi-4": Family(PHI4, (*IM, "<|im_sep|>")),
    "smollm-2": Family(SMOLLM2, IM),
    "smollm-3": Family(SMOLLM3, IM, marked=True),
    "deepseek-2": Family(DEEPSEEK2, end="</s>", opening=" "),
    "deepseek-3": Family(DEEPSEEK3, ("<|User|>", "<|Assistant|>"), "</s>"),
    "deepseek-r1": Family(R1, ("<|User|>", "<|Assistant|>"), "</s>"),
    "zephyr": Family(ZEPHYR, end="</s>"),
    "vicuna": Family(VICUNA, end="</s>", opening=" "),
    "alpaca": Family(ALPACA, end=""),
    "nemotron": Family(NEMOTRON, end=""),
    "falcon-3": Family(FALCON3, PHI, end="</s>"),
    "olmo-2": Family(OLMO2, PHI, end="</s>"),
    "granite": Family(GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>"),
    "command-r": Family(COMMAND_R, ("<|START|>", "<|USER|>", "<|CHATBOT|>", "<|SYSTEM|>", "<|STOP|>"), "<|STOP|>"),
    "yi": Family("{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% endif %}" + CHATML, IM),
    "internlm-2": Family("{{ bos_token }}" + CHATML, IM),
    "openchat": Family(OPENCHAT, ("<|end_of_turn|>",), "<|end_of_turn|>", opening=" "),
}


def family_tokenizer(family: Family, other: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes, or a copy of another, with the template and the special tokens of a family."""
    tokenizer = copy.deepcopy(other) if other else byte_tokenizer(None, eos=family.eos)
    special: Any = {"bos_token": "<s>", "eos_token": family.eos, "additional_special_tokens": [*family.specials]}
    tokenizer.add_special_tokens(special)
    tokenizer.chat_template = family.template
    return tokenizer

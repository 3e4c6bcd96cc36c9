"""A whole experiment in seconds: a tiny random Llama with the shipped model's tokenizer, few steps, few items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from experiments.config import ExperimentConfig, parse_config
from experiments.data.items import NewTask, NewText
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import DrawnSuite, SuiteContext
from experiments.models.base import shipped_folder

AnySuite = TypeVar("AnySuite", bound=DrawnSuite)
SUMS = {"new": {"name": "chain_sum"}}  # short rows


def tiny_base(folder: Path) -> str:
    """A folder that any `base_model:` can name."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def wide_base(folder: Path) -> str:
    """A tiny base with matrices of 32 rows and more: fewer cannot be packed for a CPU."""
    config = LlamaConfig.from_pretrained(tiny_base(folder))
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 32})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def small_values(base: str, /, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "small",
        "base_model": base,
        "precision": "fp32",
        "training": {"steps": 4, "batch_size": 4, "warmup_steps": 1},
        "evaluation": {
            "every": 2,
            "new_items": 4,
            "kept_items": 4,
            "replies": 2,
            "reply_tokens": 4,
            "perplexity_tokens": 64,
            "bootstrap": 100,
        },
        "arms": [
            {"name": "full", "method": "full", "learning_rates": [1e-3]},
            {"name": "control", "method": "control", "learning_rates": [1e-2], "control": {"layers": 2}},
        ],
    }
    return values | changes | {"data": SUMS | changes.get("data", {})}


def small_config(base: str, /, **changes: Any) -> ExperimentConfig:
    return parse_config(small_values(base, **changes))


def small_arm(base: str, /, **arm: Any) -> ExperimentConfig:
    """A config with one arm, of all weights unless it says otherwise."""
    return small_config(base, arms=[{"name": "x", "learning_rates": [1e-3], "method": "full", **arm}])


def make_suite(
    suite: type[AnySuite],
    config: ExperimentConfig,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[NewTask | NewText] = (),
) -> AnySuite:
    """A suite with the settings that a config has for it."""
    context = SuiteContext(config.seed, config.base_model)
    return suite(config.evaluation.settings(suite.name), context, tokenizer, tasks)


def draw_suites(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[NewTask | NewText] = ()
) -> Suites:
    """All suites that a config names, with their items drawn."""
    return Suites.drawn(config.evaluation, SuiteContext(config.seed, config.base_model), tokenizer, tasks)

"""Tiny random models of every architecture in AutoModelForCausalLM's mapping, from its default config made small.

architectures.yaml has a small value for each size that configs name, and what single architectures need besides. A
value is used only if the default config has that field, so a new architecture is often built without a line there.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.helpers.families import randomize

TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SIZES = {name: value for value, names in TABLE["sizes"].items() for name in names.split()} | {"is_decoder": True}
NOT_RUN: dict[str, str] = TABLE["not_run"]
ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Build a random model in eval mode; the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(name))
        randomize(model)
    return model.eval()


def config_of(name: str) -> PreTrainedConfig:
    """Make the default config of an architecture small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _small(CONFIG_MAPPING[name], TABLE["special"].get(name, {}))


def _small(cls: type[PreTrainedConfig], special: dict[str, Any]) -> PreTrainedConfig:
    default = vars(cls())
    nested = {name: value for name, value in default.items() if isinstance(value, PreTrainedConfig)}
    values = {name: SIZES[name] for name, value in default.items() if name in SIZES and _used(name, value)}
    if "kv_lora_rank" in default:  # latent attention has no groups of heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    values |= {name: _small(type(value), special.get(name, {})) for name, value in nested.items()}
    return cls(**{**values, **{name: value for name, value in special.items() if name not in nested}})


def _used(name: str, value: Any) -> bool:
    """None mostly means that a size follows from others."""
    return value is not None or name.endswith("token_id")

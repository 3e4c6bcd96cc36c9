"""A tiny Llama, plain or expanded, and sequences of unlike length to train it on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import ctrl
from tests.helpers.families import perturb

IDS = torch.arange(1, 25).reshape(2, 12)
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]


def tiny(seed: int = 0, depth: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def sequences(count: int = 8, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Sequences of unlike length, prompts (no label) of unlike length, right-padded: nothing is proportional."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length, prompt = 6 + (5 * i) % 11, 1 + (3 * i) % 5
        ids = torch.zeros(17, dtype=torch.long)
        ids[:length] = torch.randint(1, 96, (length,), generator=generator)
        labels = ids.clone()
        labels[:prompt] = -100
        labels[length:] = -100
        rows.append({"input_ids": ids, "attention_mask": (torch.arange(17) < length).long(), "labels": labels})
    return rows


def expanded(
    layers: int | list[int] = 2, dtype: torch.dtype = torch.float32, depth: int = 4, **kwargs: Any
) -> LlamaForCausalLM:
    """Expanded and disturbed, so that the branches differ and the divergence has a gradient.

    dtype, depth: of the base. A depth of 2 halves the time of torch.compile.
    """
    base: Any = tiny(depth=depth).to(dtype)  # type: ignore[arg-type]
    if kwargs.get("divergence") == "attention":
        base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=layers, divergence_weight=5.0, **kwargs))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def disturbed(seed: int = 5, **kwargs: object) -> PreTrainedModel:
    """Expanded and disturbed, in eval mode."""
    model = ctrl.expand(tiny().eval(), ctrl.ControlConfig(**{"layers": 2, **kwargs}))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def eager(structure: str = "concat") -> PreTrainedModel:
    """With the attention divergence, its copies disturbed."""
    base = tiny().eval()
    base.set_attn_implementation("eager")
    config = ctrl.ControlConfig(layers=2, structure=structure, divergence="attention")  # type: ignore[arg-type]
    model = ctrl.expand(base, config)
    with torch.no_grad():
        perturb(model)
    return model

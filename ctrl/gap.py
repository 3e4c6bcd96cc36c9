"""How far a merged model is from the expanded one, measured on text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrl.errors import ConfigError

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class MergeGap:
    """How far a merged model is from the expanded one: mean KL(expanded || merged) in nats per token and the largest
    absolute logit difference, over the real tokens of the batches."""

    kl: float
    max_logit_difference: float
    tokens: int


@torch.no_grad()
def merge_gap(expanded: nn.Module, merged: nn.Module, batches: Batches) -> MergeGap:
    """Compare two models on text. Raises ConfigError if the batches hold no token."""
    kl, largest, tokens = 0.0, 0.0, 0
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        p, q = (logits(model, inputs) for model in (expanded, merged))
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).to(p.device).bool()
        p, q = p[real].float(), q[real].float().to(p.device)
        kl += float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
        largest = max(largest, float((p - q).abs().max()))
        tokens += int(real.sum())
    if not tokens:
        raise ConfigError("merge_gap got no batches: give an iterable of dicts with input_ids and attention_mask")
    return MergeGap(kl / tokens, largest, tokens)


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """One forward pass on the model's own device."""
    device = next(model.parameters()).device
    out: Tensor = model(**{k: v.to(device) for k, v in inputs.items()}).logits
    return out

"""Measure on text how far a merged model is from the expanded one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctrl.divergence import real_or_all
from ctrl.errors import ConfigError

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class MergeGap:
    """Distance of a merged model from the expanded one over the real tokens of the batches.

    kl: mean KL(expanded || merged) in nats per token; NaN if there is one logit only, as of a reward model.
    max_logit_difference: the largest absolute difference of logits. A classifier of sequences has one row of logits a
    sequence, so its tokens are sequences.
    """

    kl: float
    max_logit_difference: float
    tokens: int


@torch.no_grad()
def merge_gap(expanded: nn.Module, merged: nn.Module, batches: Batches) -> MergeGap:
    """Compare two models on text, both in eval mode.

    Raises ConfigError if the batches have no real token, and inside `ctrl.pretrained`, where an expanded model is its
    base.
    """
    if not getattr(getattr(expanded, "control", None), "enabled", True):
        raise ConfigError("inside ctrl.pretrained the expanded model runs as its base: measure the gap outside of it")
    kl, largest, tokens = 0.0, torch.zeros(()), 0
    with evaluating(expanded, merged):
        for batch in each(batches):
            p, q = (logits(model, batch) for model in (expanded, merged))
            real = real_or_all(batch.get("attention_mask"), p) if p.dim() > 2 else p.new_ones(len(p), dtype=torch.bool)
            if not real.any():
                continue
            p, q = p[real].float(), q.to(p.device)[real].float()
            kl += float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
            largest = torch.maximum(largest, (p - q).abs().max().cpu())  # keeps nan, as max() would not
            tokens += int(real.sum())
    if not tokens:
        raise ConfigError("merge_gap got no real token: give a list of dicts with input_ids and attention_mask")
    return MergeGap(kl / tokens if p.shape[-1] > 1 else math.nan, float(largest), tokens)


def readable(batches: Batches | None) -> Batches | None:
    """Return batches that can be read several times: a generator gives its own once. Raises ConfigError for one batch
    in place of a list."""
    given: Any = batches
    several = given is None or hasattr(given, "__iter__") or hasattr(given, "__getitem__")  # what a loop can read
    if isinstance(batches, Mapping | str | Tensor) or not several:
        raise ConfigError(
            f"batches must be a list of dicts with input_ids, but got one {type(batches).__name__}: write [batch]"
        )
    return list(batches) if isinstance(batches, Iterator) else batches


def each(batches: Batches) -> Iterator[Mapping[str, Tensor]]:
    """Yield the batches. Raises ConfigError for one that is no dict of tensors."""
    found = readable(batches)
    for batch in () if found is None else found:  # no `or`: a DataLoader of a stream has no length
        if not isinstance(batch, Mapping):
            raise ConfigError(f"batches must be a list of dicts with input_ids, but one is a {type(batch).__name__}")
        if odd := [name for name, value in batch.items() if not isinstance(value, Tensor)]:
            raise ConfigError(
                f"{odd[0]!r} of a batch must be a tensor, but is a {type(batch[odd[0]]).__name__}: call the tokenizer "
                "with return_tensors='pt', and leave out what the model does not read"
            )
        if (ids := batch.get("input_ids")) is not None and ids.dim() < 2:
            raise ConfigError(
                f"input_ids of a batch must have shape (batch, seq), but have {tuple(ids.shape)}: a data set yields "
                "single rows, pass a DataLoader of it"
            )
        yield batch


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a batch, (batch, seq, vocabulary); those of a classifier are (batch, classes).

    Raises ConfigError if the model has none.
    """
    found: Tensor | None = getattr(run(model, batch), "logits", None)
    if found is None:
        raise ConfigError(
            f"merge_gap compares logits, but {type(model).__name__} returns none: compare its outputs by hand, or "
            "expand the model with its head"
        )
    return found


def run(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """Run one forward pass without labels on the model's own device."""
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))  # meta: offloaded
    return model(**{k: v.to(device) for k, v in batch.items() if k != "labels"})


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put the models into eval mode, without dropout, inside the block, and restore their modes after it."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

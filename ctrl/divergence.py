"""Measure the distance between the pretrained output a and the expanded output b, a term of the loss (paper 3.3).

Each divergence maps a, b (batch, seq, hidden) to one number per token (batch, seq), in fp32 for half types. Masking and
averaging happen once, in `masked_mean`. A new divergence is one function here and one line in DIVERGENCES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, smooth_l1_loss

from ctrl.numerics import unit, wide_dtype, widen

PerToken = Callable[..., Tensor]


def none(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """0 for every token."""
    return a.new_zeros(a.shape[:-1], dtype=wide_dtype(a))


def mse(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over hidden of (b - a)^2."""
    return (widen(b) - widen(a)).square().mean(-1)


def cosine(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """1 - cos(a, b), or relu(1 - cos(a, b) - margin) with a margin.

    1 - cos is computed as |u - v|^2 / 2 on unit vectors: exactly 0 if a = b, and without cancellation close to 0.
    """
    distance = (unit(widen(a)) - unit(widen(b))).square().sum(-1) / 2
    return relu(distance - margin) if margin else distance


def cosine_smooth(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """Smooth L1 of relu(1 - margin - cos(a, b)): quadratic below 1, linear above (the public code's variant)."""
    distance = cosine(a, b, margin)
    return smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none")


def norm(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """cosine / 2 + (|a| - |b|)^2 / 2: direction and length (the public code's "dot")."""
    lengths = widen(a).norm(dim=-1) - widen(b).norm(dim=-1)
    return (cosine(a, b, margin) + lengths.square()) / 2


def attention(pretrained: Tensor, expanded: Tensor, margin: float = 0.0) -> Tensor:
    """KL(expanded || pretrained) of attention rows, mean over heads: (batch, heads, seq, keys) -> (batch, seq).

    Sum over keys of e log(e / p) - e + p. The last two add 0, except with attention sinks, whose rows do not sum to 1:
    without them equal rows would not be the minimum.
    """
    p, e = widen(pretrained), widen(expanded)
    tiny = torch.finfo(p.dtype).tiny
    p, some = p.clamp_min(tiny), e.clamp_min(tiny)  # masked keys have weight 0 in both rows and add 0
    return (e * (some.log() - p.log()) - some + p).sum(-1).mean(1)


DIVERGENCES: dict[str, PerToken] = {
    "none": none,
    "mse": mse,
    "cosine": cosine,
    "cosine_smooth": cosine_smooth,
    "norm": norm,
    "attention": attention,
}


def real_tokens(attention_mask: Any, shape: Sequence[int]) -> Tensor | None:
    """Read from a mask (batch, seq or longer) which tokens of states (batch, seq, ...) of this shape are real.

    Cached tokens are cut off. Models of multiple choice get (batch, choices, seq) and run the choices as a batch. None,
    which means all, for masks of another form (4-D, or a dict of them by layer type): they do not mark padding.
    """
    if not isinstance(attention_mask, Tensor):
        return None
    if attention_mask.dim() == 3 and attention_mask.shape[:2].numel() == shape[0]:
        attention_mask = attention_mask.flatten(0, 1)
    return attention_mask[:, -shape[1] :].bool() if attention_mask.dim() == 2 else None


def real_or_all(attention_mask: Any, like: Tensor) -> Tensor:
    """Return `real_tokens` on the device of `like` (batch, seq, ...), or all true if the mask does not mark padding."""
    real = real_tokens(attention_mask, like.shape)
    return like.new_ones(like.shape[:2], dtype=torch.bool) if real is None else real.to(like.device)


def masked_mean(per_token: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average (batch, seq) over the tokens for which mask (batch, seq; None: all) is true; 0 if there are none."""
    if mask is None:
        return per_token.mean()
    mask = mask.to(device=per_token.device, dtype=torch.bool)
    return per_token.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)


def additive_mean(per_token: Tensor, mask: Tensor | None, items: Tensor, total: Tensor | int) -> Tensor:
    """Average so that micro-batches add up: sum_s items_s / total * (mean over the real tokens of sequence s).

    items: labelled tokens per sequence (batch,). total: labelled tokens of all micro-batches of one optimiser step
    (Trainer's num_items_in_batch). Plain means of micro-batches do not add up to the mean of the whole batch, since
    each knows only its own tokens; this does, however the sequences are split. Fully labelled sequences have the same
    weight as in the plain mean.
    """
    mask = torch.ones_like(per_token, dtype=torch.bool) if mask is None else mask.to(per_token.device, torch.bool)
    per_sequence = per_token.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)
    return (per_sequence * items.to(per_token.device)).sum() / total


def additive_mean_of_documents(
    per_token: Tensor, mask: Tensor, labelled: Tensor, documents: Tensor, total: Tensor | int
) -> Tensor:
    """Return `additive_mean` over the documents of packed rows, as if each were a sequence of its own.

    labelled: tokens with a label (batch, seq); no first token of a document has one. documents: (batch, seq) integers
    that are equal in a document and differ between those of a row, from 0 to seq.
    """
    mask, labelled, documents = (x.to(per_token.device) for x in (mask, labelled, documents))
    rows, seq = per_token.shape
    keys = (documents + (seq + 1) * torch.arange(rows, device=per_token.device)[:, None]).flatten()

    def sums(marked: Tensor) -> Tensor:
        return per_token.new_zeros(rows * (seq + 1)).index_add_(0, keys, marked.flatten().to(per_token.dtype))

    weights = (sums(labelled) / sums(mask).clamp_min(1))[keys].view_as(per_token)
    return (per_token.masked_fill(~mask, 0.0) * weights).sum() / total

"""Compute the output head and the cross entropy for some tokens at a time.

Logits, their log-softmax and its gradient are (tokens, vocabulary) each: with a vocabulary of 49,000 they are much of a
small model's memory. Here only a chunk of them exists at a time; the backward pass needs no more than the gradients of
the hidden states and of the head, which are kept.

torch's own `linear_cross_entropy` does the same, but it returns the loss of bf16 inputs rounded to bf16 (three digits,
torch 2.13), computes those in fp32 on a CPU, and chooses chunks that are slow there: so it is not used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctrl.numerics import widen
from experiments.methods import TokenPenalties, Tokens, TokenWeights

LOGITS = 2**24  # computed at a time: 64 MiB in fp32, and about three times that with the tensors made from them


def summed_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    token_weights: TokenWeights | None = None,
    reads_pass: bool = False,
    token_penalties: TokenPenalties | None = None,
) -> Tensor:
    """Sum w (logsumexp(z) - z[label]) over tokens, with z = weight @ hidden + bias, in fp32 or wider.

    hidden: (tokens, width). weight: (vocabulary, width). labels: (tokens,), none of them -100. token_weights: called
    with each chunk's tokens; its result w is a constant of the gradient (1 if not given). reads_pass: give it the
    log-probabilities of all labels too, for which the logits are computed once more. token_penalties: called with each
    chunk's tokens too; what it returns is added, with its own gradients. Products run in the dtype that
    autocast gives them; the gradient of the head is summed in fp32. Backward works once: it uses up the gradients that
    are kept.
    """
    all_log_p = label_log_probs(hidden, weight, bias, labels) if reads_pass else None
    summed = _as_written if token_weights or token_penalties else _SummedNll.apply
    total: Tensor = summed(hidden, weight, bias, labels, token_weights, all_log_p, token_penalties)
    return total


@torch.no_grad()
def label_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return z[label] - logsumexp(z) of each token, (tokens,), chunk by chunk like `summed_nll`."""
    dtype = product_dtype(hidden)
    cast, rows = weight.to(dtype), max(1, LOGITS // len(weight))
    parts = []
    for part, target in zip(hidden.split(rows), labels[:, None].split(rows), strict=True):
        z = widen(F.linear(part.to(dtype), cast, bias))
        parts.append((z.gather(-1, target) - z.logsumexp(-1, keepdim=True))[:, 0])
    return torch.cat(parts)


class _SummedNll(torch.autograd.Function):
    """Compute the gradient together with the loss, chunk by chunk, while a chunk's logits exist.

    dz = w (softmax(z) - onehot(label)); d hidden = dz @ weight; d weight = dz^T @ hidden; d bias = sum of dz.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        token_weights: TokenWeights | None,
        all_log_p: Tensor | None,
        token_penalties: TokenPenalties | None,
    ) -> Tensor:
        dtype = product_dtype(hidden)
        cast = weight.to(dtype)
        total = widen(hidden.new_zeros(()))
        slopes = [
            torch.zeros_like(x, dtype=total.dtype) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        of_hidden, of_weight, of_bias = slopes
        rows = max(1, LOGITS // len(weight))
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows].to(dtype)
            target = labels[start : start + rows, None]
            z = widen(F.linear(part, cast, bias))
            log_sum = z.logsumexp(-1, keepdim=True)
            nll = log_sum - z.gather(-1, target)
            tokens = Tokens(-nll[:, 0], z, log_sum, start, all_log_p)
            weights = token_weights(tokens) if token_weights else None
            penalties = token_penalties(tokens) if token_penalties else []
            total += nll.sum() if weights is None else weights @ nll[:, 0]
            total += sum(penalty.value for penalty in penalties)
            if of_hidden is None and of_weight is None and of_bias is None:
                continue
            z.sub_(log_sum).exp_()
            z.scatter_add_(-1, target, z.new_full(target.shape, -1.0))
            if weights is not None:
                z.mul_(weights[:, None])
            for penalty in penalties:
                z.index_add_(0, penalty.rows, penalty.slope)
            dz = z.to(dtype)
            if of_hidden is not None:
                of_hidden[start : start + rows] = dz @ cast
            if of_weight is not None:
                add_product(of_weight, dz.T, part)
            if of_bias is not None:
                of_bias += z.sum(0)
        leaves = zip(slopes, (hidden, weight, bias), strict=True)
        ctx.slopes = [None if s is None or x is None else s.to(x.dtype) for s, x in leaves]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        if ctx.slopes is None:
            raise RuntimeError("summed_nll was differentiated twice: compute the loss again before a second backward")
        slopes, ctx.slopes = ctx.slopes, None
        return (*(None if s is None else s.mul_(slope) for s in slopes), None, None, None, None)


@torch.compiler.disable
def _as_written(*args: Any) -> Any:
    """Sum up outside of torch.compile, which cannot trace weights and penalties: they note what they see."""
    return _SummedNll.apply(*args)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast computes matrix products of x; without autocast x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to total, without another tensor of its size if the dtypes allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b

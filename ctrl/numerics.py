"""Functions that the formulas share: precision, directions, and the two ways to mix vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SAMPLE = 64  # values of a parameter, at most


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of arithmetic on x: fp32 for half types, else its own."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def widen(x: Tensor) -> Tensor:
    """Convert half types to fp32; leave other types unchanged."""
    return x.to(wide_dtype(x))


def unit(x: Tensor) -> Tensor:
    """x / |x|, and 0 for x = 0, with a gradient of ordinary size there (dividing by a tiny number would give 1e12)."""
    length = x.norm(dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)


def lerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha) a + alpha b: exactly a if a = b or alpha = 0, exactly b if alpha = 1."""
    wide = widen(a)
    return torch.lerp(wide, widen(b), alpha.to(wide.dtype)).to(a.dtype)


def slerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """sin((1-alpha) W)/sin W a + sin(alpha W)/sin W b per token, W = angle(a, b); lerp if a and b are collinear.

    W = 2 atan2(|u - v|, |u + v|) on unit vectors: accurate at small angles, where acos is not. Collinear tokens get
    W = 2 atan2(1, 1) in the unused branch, so that no gradient passes through 0/0.
    """
    wide_a, wide_b = widen(a), widen(b)
    alpha = alpha.to(wide_a.dtype)
    u, v = unit(wide_a), unit(wide_b)
    apart, together = (u - v).square().sum(-1, keepdim=True), (u + v).square().sum(-1, keepdim=True)
    eps = torch.finfo(wide_a.dtype).eps  # of a squared length: angles below sqrt(eps), where lerp and slerp agree
    zero = apart + together < 3  # 2 (|u|^2 + |v|^2): 4 for two directions, at most 2 if a vector is 0
    collinear = (apart < eps) | (together < eps) | zero
    apart, together = apart.masked_fill(collinear, 1.0), together.masked_fill(collinear, 1.0)
    angle = 2 * torch.atan2(apart.sqrt(), together.sqrt())
    curved = (torch.sin((1 - alpha) * angle) * wide_a + torch.sin(alpha * angle) * wide_b) / torch.sin(angle)
    # at alpha 0 and 1 the division above is x * y / y: exact in the limit, not in every last bit
    straight = collinear | (alpha == 0) | (alpha == 1)
    return torch.where(straight, torch.lerp(wide_a, wide_b, alpha), curved).to(a.dtype)


class _AboveZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0].masked_fill((x < 0) & (gradients[0] > 0), 0.0)


def above_zero(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient that leads back up also below 0: clamp has none there, so x would stay for ever."""
    made: Tensor = _AboveZero.apply(x)
    return made


def some_of(parameter: Tensor) -> Tensor:
    """Return up to SAMPLE values of a parameter, evenly spread."""
    flat = parameter.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLE) or 1]

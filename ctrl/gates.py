"""Interpolations whose alpha depends on the token (see `ctrl.interpolation`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctrl.interpolation_base import Interpolation, Published
from ctrl.numerics import lerp, slerp, widen


class DLerp(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.[a; b] + theta), w in R^(2 hidden), 0 at the start."""

    per_token = True
    merged = slerp
    published = Published("dlerp", {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"})

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, 2 * hidden_size, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        w_a, w_b = self.weight.squeeze(0).chunk(2)
        return torch.sigmoid(_dot(a, w_a) + _dot(b, w_b) + self._theta(h))


class DLerpIn(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.h + theta), w in R^hidden, 0 at the start."""

    per_token = True
    merged = slerp
    published = Published("dlerpin", {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"})

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight.squeeze(0)) + self._theta(h))


class MoeSoft(Interpolation):
    """Lerp with alpha = p, the second value of softmax(G h + (0, theta)), G in R^(2 x hidden).

    Softmax over two values is sigmoid((G_1 - G_0).h + theta). G starts small and random, so that tokens differ.
    """

    per_token = True

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.randn(2, hidden_size, dtype=torch.float32) * 0.02 / math.sqrt(hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight[1] - self.weight[0]) + self._theta(h))


class Moe(MoeSoft):
    """Top-1: each token takes b if p >= 1/2, else a; straight-through, the gradient is that of alpha = p.

    A plain argmax would give the gate no gradient. In the forward pass alpha is exactly 0 or 1, in the backward pass it
    is p, so the LM loss trains the gate through grad . (b - a).
    """

    published = Published("moe", {"theta": "gating.gate_network.0.bias", "weight": "gating.gate_network.0.weight"})

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        p = super().alpha(a, b, h)
        return (p >= 0.5).to(p.dtype) + (p - p.detach())

    @classmethod
    def to_published(cls, name: str, value: Tensor) -> Tensor:
        """Published gates have two biases, and only their difference matters: (0, theta)."""
        return torch.cat([torch.zeros_like(value), value]) if name == "theta" else value

    @classmethod
    def from_published(cls, name: str, value: Tensor) -> Tensor:
        value = super().from_published(name, value)
        return value.diff() if name == "theta" else value


class Gate(Interpolation):
    """Lerp with a per-token alpha that can be exactly 0: alpha = s^2 (3 - 2 s), s = clip(s_0 + w.hn, 0, 1).

    hn = h / sqrt(mean(h^2) + 1e-6), w in R^hidden is 0 at the start, and s_0 is the s at which alpha is sigmoid(theta):
    1/2 for theta = 0. So alpha starts at alpha_start, exactly at 1/2. Where s_0 + w.hn <= 0 the layer passes on a, bit
    for bit, and no gradient reaches its gate or its copy; the derivative of alpha is continuous. Of our own, for
    training with a KL to the base on old text; nearest work: MoE-LPR (arXiv 2408.11396).
    """

    per_token = True
    merged = lerp

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        wide = widen(h)
        hn = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        share = torch.sigmoid(self._theta(h))
        start = 0.5 - torch.sin(torch.asin(1 - 2 * share) / 3)
        start = start.where((share > 0) & (share < 1), share)  # the sine of 30 degrees is not 1/2 to the last bit
        s = (start + _dot(hn, self.weight.squeeze(0))).clamp(0, 1)
        return s.square() * (3 - 2 * s)


def _dot(x: Tensor, w: Tensor) -> Tensor:
    """Compute x.w over hidden: (batch, seq, 1). Autocast leaves product and sum in fp32, but not a matmul."""
    x = widen(x)
    return (x * w.to(x.dtype)).sum(-1, keepdim=True)

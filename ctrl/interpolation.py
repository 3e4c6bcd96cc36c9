"""Interpolations: mix the pretrained layer's output a with the expanded layer's output b (paper Fig. 4c).

Shapes: a, b and the layer's input h are (batch, seq, hidden); alpha, the share of b, is a scalar () or per token
(batch, seq, 1). Half-precision inputs are mixed in fp32, because b - a is small beside a, and come back in their dtype.

A new interpolation is one class here and one line in INTERPOLATIONS.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrl.errors import ConfigError, unknown_name
from ctrl.numerics import unit, widen


def lerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha) a + alpha b, exactly a where a = b and at alpha 0, exactly b at alpha 1."""
    wide = widen(a)
    return torch.lerp(wide, widen(b), alpha.to(wide.dtype)).to(a.dtype)


def slerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Per token sin((1-alpha) W)/sin W a + sin(alpha W)/sin W b, W = angle(a, b); lerp where a and b are collinear.

    W = 2 atan2(|u - v|, |u + v|) on unit vectors, accurate at small angles where acos is not. The branch that is not
    taken gets W = 2 atan2(1, 1), so that no gradient passes through 0/0.
    """
    wide_a, wide_b = widen(a), widen(b)
    alpha = alpha.to(wide_a.dtype)
    u, v = unit(wide_a), unit(wide_b)
    apart, together = (u - v).square().sum(-1, keepdim=True), (u + v).square().sum(-1, keepdim=True)
    eps = torch.finfo(wide_a.dtype).eps  # of a squared length: angles below sqrt(eps), where lerp and slerp agree
    zero = apart + together < 3  # 2 (|u|^2 + |v|^2) is 4 for two directions, at most 2 where one vector is 0: no angle
    collinear = (apart < eps) | (together < eps) | zero
    apart, together = apart.masked_fill(collinear, 1.0), together.masked_fill(collinear, 1.0)
    angle = 2 * torch.atan2(apart.sqrt(), together.sqrt())
    curved = (torch.sin((1 - alpha) * angle) * wide_a + torch.sin(alpha * angle) * wide_b) / torch.sin(angle)
    # at alpha 0 and 1 the division above is x * y / y: exact in the limit, not in every last bit
    straight = collinear | (alpha == 0) | (alpha == 1)
    return torch.where(straight, torch.lerp(wide_a, wide_b, alpha), curved).to(a.dtype)


class Interpolation(nn.Module):
    """Base: one alpha = sigmoid(theta) per layer, theta a parameter of shape (1,) that trains if `learned`.

    Subclasses override `alpha` (to make it depend on the token), `mix`, or `compared`. held: a share that replaces
    alpha, a scalar (), inside `ctrl.at_alpha`.
    """

    held: Tensor | None = None

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        theta = torch.tensor([alpha_start], dtype=torch.float64).logit().float()
        self.theta = nn.Parameter(theta, requires_grad=learned)

    def forward(self, a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mixed hidden state (batch, seq, hidden) and the alpha used, () or (batch, seq, 1)."""
        alpha = self.share(a, b, h)
        return self.mix(self.compared(a), b, alpha), alpha

    def share(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        """The alpha that is used: the held one, else `alpha`."""
        return self.alpha(a, b, h) if self.held is None else self.held.to(a.device)

    def scalar(self) -> Tensor:
        """The share where no token is at hand: the held one (), else sigmoid(theta) (1,)."""
        return torch.sigmoid(self.theta) if self.held is None else self.held.to(self.theta.device)

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(self._theta(h))

    def mix(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        return lerp(a, b, alpha)

    def compared(self, a: Tensor) -> Tensor:
        """What is mixed with b and what the divergence compares with b."""
        return a

    def _theta(self, h: Tensor) -> Tensor:
        """theta as a scalar, as wide as the arithmetic on h is."""
        return self.theta.squeeze(0).to(widen(h).dtype)

    def at_hand(self) -> float:
        """sigmoid(theta) as a number; nan in a process that has no part of a theta sharded over several."""
        theta: Any = self.theta.detach()
        local: Tensor = theta.to_local() if hasattr(theta, "to_local") else theta
        return torch.sigmoid(local.float()).item() if local.numel() else math.nan

    def extra_repr(self) -> str:
        return f"alpha={self.at_hand():.3g}, learned={self.theta.requires_grad}"


class Lerp(Interpolation):
    """(1-alpha) a + alpha b."""


class Slerp(Interpolation):
    """Spherical: along the arc between a and b."""

    def mix(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        return slerp(a, b, alpha)


class DLerp(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.[a; b] + theta), w in R^(2 hidden), 0 at the start."""

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, 2 * hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        w_a, w_b = self.weight.squeeze(0).chunk(2)
        return torch.sigmoid(_dot(a, w_a) + _dot(b, w_b) + self._theta(h))


class DLerpIn(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.h + theta), w in R^hidden, 0 at the start."""

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight.squeeze(0)) + self._theta(h))


class PLerp(Interpolation):
    """(1-alpha) P a + alpha b, P = I + offset. The offset is 0 at the start, so P a = a to the last bit."""

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.offset = nn.Parameter(torch.zeros(hidden_size, hidden_size))

    def compared(self, a: Tensor) -> Tensor:
        wide = widen(a)
        return (wide + linear(wide, self.offset.to(wide.dtype)).to(wide.dtype)).to(a.dtype)


class Proj(PLerp):
    """Lerp of a and b; only the divergence sees the projection, comparing P a with b."""

    def forward(self, a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.share(a, b, h)
        return self.mix(a, b, alpha), alpha


class MoeSoft(Interpolation):
    """Lerp with alpha = p, the expanded branch's share of softmax(G h + (0, theta)), G in R^(2 x hidden).

    Softmax over two is sigmoid((G_1 - G_0).h + theta). G starts small and random, so that tokens part ways.
    """

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.randn(2, hidden_size) * 0.02 / math.sqrt(hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight[1] - self.weight[0]) + self._theta(h))


class Moe(MoeSoft):
    """Top-1: each token takes b where p >= 1/2, else a; straight-through, the gradient is that of alpha = p.

    A bare argmax gives the gate no gradient. Forward, alpha is exactly 0 or 1; backward it is p, so the LM loss
    trains the gate through grad . (b - a).
    """

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        p = super().alpha(a, b, h)
        return (p >= 0.5).to(p.dtype) + (p - p.detach())


INTERPOLATIONS: dict[str, type[Interpolation]] = {
    "lerp": Lerp,
    "slerp": Slerp,
    "dlerp": DLerp,
    "dlerpin": DLerpIn,
    "plerp": PLerp,
    "proj": Proj,
    "moe": Moe,
    "moe_soft": MoeSoft,
}


def build_interpolation(name: str, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> Interpolation:
    """Look an interpolation up by name. Raises ConfigError with the nearest name."""
    if name not in INTERPOLATIONS:
        raise ConfigError(unknown_name("interpolation", name, list(INTERPOLATIONS)))
    return INTERPOLATIONS[name](hidden_size, alpha_start, learned)


def _dot(x: Tensor, w: Tensor) -> Tensor:
    """x.w over hidden: (batch, seq, 1). A product and a sum, which autocast leaves in fp32, unlike a matmul."""
    x = widen(x)
    return (x * w.to(x.dtype)).sum(-1, keepdim=True)

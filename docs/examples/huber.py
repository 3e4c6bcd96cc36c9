"""A divergence of your own: the Huber distance, in which a few large differences count less than with mse."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import huber_loss

from ctrl.divergence import DIVERGENCES
from ctrl.numerics import widen


def huber(a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over hidden of (b - a)^2 / 2 where |b - a| <= 1, else |b - a| - 1/2: (batch, seq)."""
    return huber_loss(widen(b), widen(a), reduction="none").mean(-1)


DIVERGENCES["huber"] = huber

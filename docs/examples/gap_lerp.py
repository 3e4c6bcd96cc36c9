"""An interpolation of your own: lerp whose alpha depends on how far apart the two branches are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrl.interpolation import INTERPOLATIONS, Interpolation
from ctrl.numerics import lerp, widen


class GapLerp(Interpolation):
    """Lerp with a per-token alpha = sigmoid(theta + s |b - a|), s a scalar, 0 at the start."""

    per_token = True  # alpha differs from token to token
    merged = lerp  # how merge_back mixes the weights of the two branches; leave it out if there is no merged form

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        gap = (widen(b) - widen(a)).norm(dim=-1, keepdim=True)
        return torch.sigmoid(self._theta(h) + self.weight.to(gap.dtype) * gap)


INTERPOLATIONS["gap_lerp"] = GapLerp

"""A loss term of your own: weights of tokens that make the model learn from its worst tokens first."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from experiments.methods.base import LossTerm
from experiments.methods.tables import LOSS_TERMS


class Focal(LossTerm):
    """Weight each token's loss by (1 - p)^gamma, p its own probability as a constant (after arXiv 1708.02002)."""

    gamma: float = Field(2.0, ge=0, description="0: all tokens alike; larger: the less likely ones count more")

    def token_weights(self, log_p: Tensor) -> Tensor:
        return (-log_p.expm1()).pow(self.gamma)  # 1 - p, exact for small and large p


LOSS_TERMS["focal"] = Focal

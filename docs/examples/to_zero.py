"""A loss term of your own: a penalty, which must add up over micro-batches."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from experiments.methods.base import LossTerm
from experiments.methods.batches import Batch, micro_batch_fraction
from experiments.methods.tables import LOSS_TERMS
from experiments.methods.weights import trainable


class ToZero(LossTerm):
    """Penalise large weights: weight / 2 * |theta|^2 over what trains."""

    weight: float = Field(0.01, ge=0, description="factor of the term")
    reads_weights: ClassVar[bool] = True  # refused with FSDP, which has the weights in shards

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        squares = [p.square().sum() for p in trainable(model).values()]
        return self.weight / 2 * torch.stack(squares).sum() * micro_batch_fraction(batch, total)


LOSS_TERMS["to_zero"] = ToZero

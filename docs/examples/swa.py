"""An average of your own: the plain mean of the weights after several steps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from experiments.methods.averaging import SecondCopy
from experiments.methods.base import Average
from experiments.methods.tables import AVERAGES
from experiments.methods.weights import trainable


class MeanOfSome(SecondCopy):
    """`Swa` in training: the second copy of the weights is their mean."""

    part: Swa

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        every, kept = self.part.every, self.kept(model)
        if step % every == 0:
            for name, p in trainable(model).items():
                kept[name].lerp_(p, every / step)  # mean of n: 1/n of the new one, n = step / every


class Swa(Average):
    """Evaluate and save the mean of the weights after steps `every`, 2 `every`, ... (SWA, arXiv 1803.05407).

    Before the first of these steps it is the start.
    """

    every: int = Field(1, ge=1, description="steps between two weights of the mean")
    active: ClassVar[type[Any]] = MeanOfSome


AVERAGES["swa"] = Swa

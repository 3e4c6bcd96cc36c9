"""An average of your own: the plain mean of the weights after several steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import nn

from experiments.methods.averaging import SecondCopy
from experiments.methods.tables import AVERAGES
from experiments.methods.weights import shard_like, swap_weights, trainable


class Swa(SecondCopy):
    """Evaluate and save the mean of the weights after steps `every`, 2 `every`, ... (SWA, arXiv 1803.05407).

    Before the first of these steps it is the start.
    """

    every: int = Field(1, ge=1, description="steps between two weights of the mean")

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        if step % self.every:
            return
        self._kept = shard_like(self._kept, model)
        for name, p in trainable(model).items():
            self._kept[name].lerp_(p, self.every / step)  # mean of n: 1/n of the new one, n = step / every

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        self._kept = shard_like(self._kept, model)
        with swap_weights(model, self._kept):
            yield


AVERAGES["swa"] = Swa

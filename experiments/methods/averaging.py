"""Averages of weights: over steps (EMA), with the base (WiSE-FT), with slow weights (MER)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.methods.base import Average, MethodContext, Tuning
from experiments.methods.weights import shard_like, snapshot, swap_weights, trainable


class SecondCopy(Average):
    """Base of averages that hold one more copy of the trained weights; a checkpoint keeps it."""

    _kept: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        self._kept = snapshot(model)

    def state(self) -> dict[str, Tensor]:
        return self._kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._kept = {name: state[name].to(t.device) for name, t in self._kept.items()}


class Ema(SecondCopy):
    """Evaluate and save an average over steps, which begins at the start: m <- decay m + (1 - decay) theta.

    Of adapters it averages the factors, not their products.
    """

    decay: float = Field(0.99, ge=0, lt=1, description="share of the average that stays at each step")

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        self._kept = shard_like(self._kept, model)
        for name, p in trainable(model).items():
            self._kept[name].lerp_(p, 1 - self.decay)

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        self._kept = shard_like(self._kept, model)
        with swap_weights(model, self._kept):
            yield


class Wise(SecondCopy):
    """Evaluate and save (1 - alpha) theta_0 + alpha theta (WiSE-FT, arXiv 2109.01903); training is not changed."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="share of the trained weights (not the alpha of an interpolation)"
    )

    def refusal(self, tuning: Tuning) -> str | None:
        if not tuning.adapts:
            return None
        return (
            "wise interpolates weights, and the factors of an adapter are none: train the arm without it, then "
            "use the posthoc operation 'wise', which folds the adapter into the weights first"
        )

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        self._kept = shard_like(self._kept, model)
        with torch.no_grad():
            mixed = {n: torch.lerp(self._kept[n], p.detach(), self.alpha) for n, p in trainable(model).items()}
        with swap_weights(model, mixed):
            yield

    def state(self) -> dict[str, Tensor]:
        return {}  # the copy is the start, which `begin` notes again


class Mer(SecondCopy):
    """Pull the weights back every `every` steps: slow <- slow + rate (theta - slow), then theta <- slow.

    This is Reptile's step of MER (arXiv 1810.11910), which the paper combines with replay: give the arm `replay`. Steps
    after the last multiple of `every` stay fast.
    """

    every: int = Field(10, ge=1, description="steps between two averages")
    rate: float = Field(0.5, gt=0, le=1, description="share of the way from the slow weights to the trained ones")
    writes_weights: ClassVar[bool] = True

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        if step % self.every:
            return
        self._kept = shard_like(self._kept, model)
        for name, p in trainable(model).items():
            p.copy_(self._kept[name].lerp_(p, self.rate))

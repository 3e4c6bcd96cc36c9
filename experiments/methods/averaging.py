"""Averages of weights: over steps (EMA), with the base (WiSE-FT), with slow weights (MER)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.methods.active import ActiveAverage
from experiments.methods.base import Average, MethodContext, Tuning
from experiments.methods.weights import shard_like, snapshot, swap_weights, trainable


class SecondCopy(ActiveAverage):
    """Base of averages that hold one more copy of the trained weights; a checkpoint keeps it. part: the average."""

    def __init__(self, part: Any, model: PreTrainedModel, context: MethodContext) -> None:
        self.part, self._kept = part, snapshot(model)

    def kept(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the copy, sharded like the model: that may have been sharded since."""
        self._kept = shard_like(self._kept, model)
        return self._kept

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        with swap_weights(model, self.kept(model)):
            yield

    def state(self) -> dict[str, Tensor]:
        return self._kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._kept = {name: state[name].to(t.device) for name, t in self._kept.items()}


class MeanOverSteps(SecondCopy):
    """`Ema` in training."""

    part: Ema

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        kept = self.kept(model)
        for name, p in trainable(model).items():
            kept[name].lerp_(p, 1 - self.part.decay)


class Ema(Average):
    """Evaluate and save an average over steps, which begins at the start: m <- decay m + (1 - decay) theta.

    Of adapters it averages the factors, not their products.
    """

    decay: float = Field(0.99, ge=0, lt=1, description="share of the average that stays at each step")
    active: ClassVar[type[Any]] = MeanOverSteps
    kept_copies: ClassVar[int] = 1


class MixWithStart(SecondCopy):
    """`Wise` in training."""

    part: Wise

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        kept = self.kept(model)
        with torch.no_grad():
            mixed = {n: torch.lerp(kept[n], p.detach(), self.part.alpha) for n, p in trainable(model).items()}
        with swap_weights(model, mixed):
            yield

    def state(self) -> dict[str, Tensor]:
        return {}  # the copy is the start, which `begin` notes again

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was saved."""


class Wise(Average):
    """Evaluate and save (1 - alpha) theta_0 + alpha theta (WiSE-FT, arXiv 2109.01903); training is not changed."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="share of the trained weights (not the alpha of an interpolation)"
    )
    active: ClassVar[type[Any]] = MixWithStart
    kept_copies: ClassVar[int] = 1

    def refusal(self, tuning: Tuning) -> str | None:
        if not tuning.draws:  # copies may be adapters too
            return None
        return (
            "wise interpolates weights, and the factors of an adapter are none: train the arm without it, then "
            "use the posthoc operation 'wise', which folds the adapter into the weights first"
        )


class SlowWeights(SecondCopy):
    """`Mer` in training: the copy is the slow weights."""

    part: Mer

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        if step % self.part.every:
            return
        kept = self.kept(model)
        for name, p in trainable(model).items():
            p.copy_(kept[name].lerp_(p, self.part.rate))

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        yield  # with the weights that train


class Mer(Average):
    """Pull the weights back every `every` steps: slow <- slow + rate (theta - slow), then theta <- slow.

    This is Reptile's step of MER (arXiv 1810.11910), which the paper combines with replay: give the arm `replay`. Steps
    after the last multiple of `every` stay fast.
    """

    every: int = Field(10, ge=1, description="steps between two averages")
    rate: float = Field(0.5, gt=0, le=1, description="share of the way from the slow weights to the trained ones")
    active: ClassVar[type[Any]] = SlowWeights
    kept_copies: ClassVar[int] = 1
    writes_weights: ClassVar[bool] = True

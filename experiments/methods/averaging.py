"""Methods that average weights: over steps (EMA), with the base (WiSE-FT), with slow weights (MER)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.methods.base import Setting, placed, snapshot, swapped, trainable
from experiments.methods.penalties import OnTop


class Averaging(OnTop):
    """Common part: one more copy of what trains."""

    trains: Literal["full", "partial", "control"] = "full"
    _kept: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def begin(self, model: PreTrainedModel, setting: Setting) -> None:
        self._kept = snapshot(model)


class Ema(Averaging):
    """average <- decay * average + (1 - decay) * theta after each step, from the base on; it is measured and saved."""

    decay: float = Field(0.99, ge=0, lt=1)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        self._kept = placed(self._kept, model)
        for name, p in trainable(model).items():
            self._kept[name].lerp_(p, 1 - self.decay)

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        self._kept = placed(self._kept, model)
        with swapped(model, self._kept):
            yield

    def state(self) -> dict[str, Tensor]:
        return self._kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._kept = {name: state[name].to(t.device) for name, t in self._kept.items()}


class Wise(Averaging):
    """WiSE-FT (arXiv 2109.01903): (1 - alpha) theta_0 + alpha theta is measured and saved; training is not changed."""

    alpha: float = Field(0.5, ge=0, le=1)

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        self._kept = placed(self._kept, model)
        with torch.no_grad():
            mixed = {n: torch.lerp(self._kept[n], p.detach(), self.alpha) for n, p in trainable(model).items()}
        with swapped(model, mixed):
            yield


class Mer(Averaging):
    """Reptile's step of MER (arXiv 1810.11910): every `every` steps slow <- slow + rate (theta - slow), theta <- slow.

    The paper does it together with replay: give the arm `replay`. Steps behind the last multiple of `every` stay fast.
    """

    every: int = Field(10, ge=1)
    rate: float = Field(0.5, gt=0, le=1)
    writes_weights: ClassVar[bool] = True

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        if step % self.every:
            return
        self._kept = placed(self._kept, model)
        for name, p in trainable(model).items():
            p.copy_(self._kept[name].lerp_(p, self.rate))

    def state(self) -> dict[str, Tensor]:
        return self._kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._kept = {name: state[name].to(t.device) for name, t in self._kept.items()}

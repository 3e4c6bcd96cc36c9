"""Learning-rate schedules: the factor on the highest rate at each step. transformers' own where it has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)


class ScheduleSettings(Protocol):
    """The fields of the YAML section `training` that a schedule reads."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def min_lr_ratio(self) -> float: ...
    @property
    def constant_lr_ratio(self) -> float: ...
    @property
    def cooldown_share(self) -> float: ...
    @property
    def anneal_share(self) -> float: ...


Schedule = Callable[[Optimizer, ScheduleSettings], LambdaLR]


def constant(optimizer: Optimizer, training: ScheduleSettings) -> LambdaLR:
    """Warm-up, then constant. `constant` and `constant_with_warmup` are the same."""
    return get_constant_schedule_with_warmup(optimizer, training.warmup_steps)


def linear(optimizer: Optimizer, training: ScheduleSettings) -> LambdaLR:
    """Warm-up, then linearly down to 0."""
    return get_linear_schedule_with_warmup(optimizer, training.warmup_steps, training.steps)


def cosine(optimizer: Optimizer, training: ScheduleSettings) -> LambdaLR:
    """Re-warming of a model that had been annealed, then half a cosine down to `min_lr_ratio` (arXiv 2403.08763)."""
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, training.warmup_steps, training.steps, min_lr_rate=training.min_lr_ratio
    )


def infinite(optimizer: Optimizer, training: ScheduleSettings) -> LambdaLR:
    """Warm-up, cooldown to a constant, constant, annealing (arXiv 2403.08763, infinite schedules): a later training
    can start from before the annealing without re-warming."""
    return LambdaLR(optimizer, partial(infinite_factor, training=training))


def infinite_factor(step: int, training: ScheduleSettings) -> float:
    """The factor before optimiser step `step` (0 is the first), continuous over four phases:

    warm-up    s / warmup_steps
    cooldown   c + (1 - c) (1 + cos(pi p)) / 2        c = constant_lr_ratio
    constant   c
    annealing  c (m / c)^p                            m = min_lr_ratio; p in [0, 1] is the part of the phase done
    """
    warm, c, m = training.warmup_steps, training.constant_lr_ratio, training.min_lr_ratio
    cool, anneal = (round(share * training.steps) for share in (training.cooldown_share, training.anneal_share))
    if step < warm:
        return step / warm
    if step < warm + cool:
        return c + (1 - c) * (1 + math.cos(math.pi * (step - warm) / cool)) / 2
    if step <= training.steps - anneal:
        return c
    return c * (m / c) ** min((step - training.steps + anneal) / anneal, 1.0)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "infinite": infinite,
}

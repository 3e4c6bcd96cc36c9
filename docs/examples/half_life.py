"""A learning-rate schedule of your own: after the warm-up, the rate halves a fixed number of times."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from experiments.training.schedules import SCHEDULES, ScheduleSettings

HALVINGS = 4  # from the end of the warm-up to the last step


def half_life(optimizer: Optimizer, training: ScheduleSettings) -> LambdaLR:
    """Warm-up, then 2^(-4 p), p in [0, 1] the part of the remaining steps that is done."""
    warm, rest = training.warmup_steps, max(1, training.steps - training.warmup_steps)

    def factor(step: int) -> float:
        return step / warm if step < warm else 2.0 ** (-HALVINGS * (step - warm) / rest)

    return LambdaLR(optimizer, factor)


SCHEDULES["half_life"] = half_life

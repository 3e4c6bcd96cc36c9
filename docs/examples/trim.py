"""An operation on trained weights of your own: keep only the largest changes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.posthoc.operations import OPERATIONS, Figures, TrainedArm, mixed, plain_model


def trim(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """base + the alpha share of each tensor's changes that is largest (the first step of TIES, arXiv 2306.01708)."""
    if alpha is None:
        raise ConfigError("trim needs the share of changes that stay: --alphas 0.2 0.5")
    base, tuned = arm.base(), dict(plain_model(arm.trained(), arm.batches).named_parameters())
    start = dict(base.named_parameters())
    trimmed = {name: _largest(start[name].detach(), p.detach(), alpha) for name, p in tuned.items()}
    return mixed(base, [(1.0, trimmed)]), {}


def _largest(start: Tensor, end: Tensor, share: float) -> Tensor:
    """`end` where its change is among the largest share, else `start`."""
    change = (end - start).abs()
    kept = round(share * change.numel())
    if not kept:
        return start.clone()
    smallest_kept = change.flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(change >= smallest_kept, end, start)


OPERATIONS["trim"] = trim

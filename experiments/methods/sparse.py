"""Train all weights, but change few of them at each step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from experiments.methods.tuning import Full


class Mofo(Full):
    """At each step change only the weights with the largest momentum (MoFO, arXiv 2407.20999).

    Adam's step is made; then, of each tensor, the ceil(share * n) entries with the largest |m| keep it, and the others
    return to their value before it. m is Adam's mean of gradients after this step; both of its means go on for all
    entries. Weight decay is undone too where the step is. It needs one more copy of the weights.
    """

    hooks_optimizer: ClassVar[bool] = True
    step_copies: ClassVar[int] = 1
    share: float = Field(0.15, gt=0, le=1, description="share of each tensor's entries that a step changes")

    def hook(self, optimizer: Optimizer) -> None:
        before: dict[Tensor, Tensor] = {}

        def note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            before.update({p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]})

        def undo(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for p, value in before.items():
                state = optimizer.state.get(p, {})
                if "exp_avg" in state:
                    keep_largest(p.data, value, state["exp_avg"], self.share)
            before.clear()

        optimizer.register_step_pre_hook(note)
        optimizer.register_step_post_hook(undo)


@torch.no_grad()
def keep_largest(now: Tensor, before: Tensor, momentum: Tensor, share: float) -> None:
    """Set `now` back to `before` in place, but for the largest share of |momentum|; of equal ones all stay."""
    size = momentum.abs()
    count = -int(-share * size.numel() // 1)  # rounded up
    smallest = size.flatten().kthvalue(size.numel() - count + 1).values
    now.copy_(torch.where(size >= smallest, now, before))

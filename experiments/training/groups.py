"""Parameter groups of the optimizer: alphas and gates with a learning rate of their own, and without weight decay."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ctrl.layer import expanded_layers
from experiments.common.section import Section

MOST = 1e4  # a larger factor is mistyped


class Rates(Section):
    """Learning rates of alphas and gates, as multiples of the arm's. What is given here has no weight decay."""

    alpha: float | None = Field(None, ge=0, le=MOST, description="of each learned alpha; none: as all else")
    gates: float | None = Field(
        None,
        ge=0,
        le=MOST,
        description="of what else interpolations learn, and of a learned norm_mix; none: as all else",
    )

    @property
    def given(self) -> dict[str, float]:
        return {kind: value for kind, value in (("alpha", self.alpha), ("gates", self.gates)) if value is not None}


def kinds(model: nn.Module) -> dict[int, str]:
    """Return the kind (`alpha`, `gates`) of each trained parameter of interpolations and relaxed norms, by its id."""
    found: dict[int, str] = {}
    for layer in expanded_layers(model):
        own = [] if layer.interpolation is None else list(layer.interpolation.named_parameters())
        own += [(n, p) for n, p in layer.expanded.named_parameters() if n.endswith("interpolation_factor")]
        found |= {id(p): "alpha" if name == "theta" else "gates" for name, p in own if p.requires_grad}
    return found


def split_groups(optimizer: Optimizer, model: Any, rates: Rates) -> None:
    """Move alphas and gates to groups of their own. Call it before the first step and before a schedule is made."""
    factors, of = rates.given, kinds(model)
    if not factors:
        return
    groups = []
    for group in optimizer.param_groups:
        moved = [p for p in group["params"] if of.get(id(p)) in factors]
        ids = {id(p) for p in moved}
        group["params"] = [p for p in group["params"] if id(p) not in ids]
        for kind, factor in factors.items():
            mine = [p for p in moved if of[id(p)] == kind]
            if mine:
                groups.append({**group, "params": mine, "lr": factor * group["lr"], "weight_decay": 0.0})
    optimizer.param_groups.extend(groups)

"""The base class of interpolations: one alpha per layer, of which a subclass changes what differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctrl.numerics import lerp, wide_dtype
from ctrl.offloaded import held

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # (a, b, alpha) -> mixed


@dataclass(frozen=True)
class Published:
    """Names of an interpolation in published checkpoints.

    method: value of `merge_method` in config.json. tensors: name of our parameter -> name of their tensor in the layer.
    """

    method: str
    tensors: Mapping[str, str]


class Interpolation(nn.Module):
    """Base class: one alpha = sigmoid(theta) per layer. theta is a parameter of shape (1,) that trains if `learned`.

    A subclass overrides `alpha` (to make it depend on the token), `mix`, `project` or `compared`, and sets the class
    attributes that differ. The first line of its docstring is its summary.

    fixed_alpha: scalar () that the layer passes to `forward` inside `ctrl.at_alpha`; None outside of it.
    per_token: alpha depends on the token and has shape (batch, seq, 1), not (). `merge_back` then needs text to measure
        its mean.
    merged: function (W_pretrained, W_expanded, alpha) with which `merge_back` mixes weights, each row of a matrix like
        a token; None: no merged form.
    published: names in published checkpoints; None: the layout has no such interpolation.
    trained_by_divergence: names of parameters that do not change the mixed output. `expand` freezes them if the
        divergence does not compare hidden states.
    """

    fixed_alpha: Tensor | None = None
    per_token: ClassVar[bool] = False
    merged: ClassVar[Mix | None] = None
    published: ClassVar[Published | None] = None
    trained_by_divergence: ClassVar[tuple[str, ...]] = ()

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        theta = torch.tensor([alpha_start], dtype=torch.float64).logit().float()
        self.theta = nn.Parameter(theta, requires_grad=learned)

    def forward(self, a: Tensor, b: Tensor, h: Tensor, fixed_alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mixed hidden state (batch, seq, hidden) and the alpha used, () or (batch, seq, 1).

        fixed_alpha: scalar () that replaces alpha. It is that of the pass, which checkpointing may run again later.
        """
        alpha = self.alpha(a, b, h) if fixed_alpha is None else fixed_alpha.to(a.device)
        return self.mix(self.project(a), b, alpha), alpha

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        """Compute alpha, () or (batch, seq, 1), in fp32 or wider."""
        return torch.sigmoid(self._theta(h))

    def mix(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        """Mix a and b (batch, seq, hidden): exactly a if a = b or alpha = 0, exactly b if alpha = 1."""
        return lerp(a, b, alpha)

    def project(self, a: Tensor) -> Tensor:
        """Return what is mixed with b (batch, seq, hidden). Base class: a itself."""
        return a

    def compared(self, a: Tensor) -> Tensor:
        """Return what the divergence compares with b (batch, seq, hidden). Base class: a itself."""
        return a

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the class's docstring, for listings."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def to_published(cls, name: str, value: Tensor) -> Tensor:
        """Convert our parameter of this name to the tensor of a published checkpoint."""
        return value

    @classmethod
    def from_published(cls, name: str, value: Tensor) -> Tensor:
        """Convert the tensor of a published checkpoint to our parameter of this name. A wrong shape stays wrong."""
        return value.float().reshape(-1) if name == "theta" else value

    def _theta(self, h: Tensor) -> Tensor:
        """Return theta as a scalar in the dtype of the arithmetic on h."""
        return self.theta.squeeze(0).to(wide_dtype(h))

    def local_alpha(self) -> float:
        """Return sigmoid(theta) as a float; NaN if this rank holds no shard of theta."""
        theta: Any = held(self, "theta").detach()
        local: Tensor = theta.to_local() if hasattr(theta, "to_local") else theta
        return torch.sigmoid(local.float()).item() if local.numel() else math.nan

    def extra_repr(self) -> str:
        return f"alpha={self.local_alpha():.3g}, learned={self.theta.requires_grad}"

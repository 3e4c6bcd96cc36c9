"""Mix the pretrained layer's output a with the expanded layer's output b (paper Fig. 4c).

Shapes: a, b and the layer's input h are (batch, seq, hidden); alpha, the weight of b, is a scalar () or per token
(batch, seq, 1). Half-precision inputs are mixed in fp32, because b - a is small compared with a, and returned in their
own dtype.

A new interpolation is one class here and one line in INTERPOLATIONS. Merging, the published layout and the bench read
from the class all that differs between interpolations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrl.errors import ConfigError, unknown_name
from ctrl.numerics import lerp, slerp, wide_dtype, widen
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


class Lerp(Interpolation):
    """(1-alpha) a + alpha b."""

    merged = lerp
    published = Published("lerp", {"theta": "interpolation_factor"})


class Slerp(Interpolation):
    """Spherical: along the arc from a to b, per token (`ctrl.numerics.slerp`)."""

    merged = slerp
    published = Published("slerp", {"theta": "interpolation_factor"})

    def mix(self, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        return slerp(a, b, alpha)


class DLerp(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.[a; b] + theta), w in R^(2 hidden), 0 at the start."""

    per_token = True
    merged = slerp
    published = Published("dlerp", {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"})

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, 2 * hidden_size, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        w_a, w_b = self.weight.squeeze(0).chunk(2)
        return torch.sigmoid(_dot(a, w_a) + _dot(b, w_b) + self._theta(h))


class DLerpIn(Interpolation):
    """Lerp with a per-token alpha = sigmoid(w.h + theta), w in R^hidden, 0 at the start."""

    per_token = True
    merged = slerp
    published = Published("dlerpin", {"theta": "interp_weight.fc.bias", "weight": "interp_weight.fc.weight"})

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=torch.float32))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight.squeeze(0)) + self._theta(h))


class Projection(Interpolation):
    """Base class of those with a matrix P = I + offset. The offset is 0 at the start, so P a = a to the last bit."""

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.offset = nn.Parameter(torch.zeros(hidden_size, hidden_size, dtype=torch.float32))

    def projected(self, a: Tensor) -> Tensor:
        """Compute P a in fp32 for half types, returned in a's dtype."""
        wide = widen(a)
        return (wide + linear(wide, self.offset.to(wide.dtype)).to(wide.dtype)).to(a.dtype)

    @classmethod
    def to_published(cls, name: str, value: Tensor) -> Tensor:
        """Published checkpoints hold P = I + offset."""
        return value.float() + torch.eye(value.shape[0], device=value.device) if name == "offset" else value

    @classmethod
    def from_published(cls, name: str, value: Tensor) -> Tensor:
        if name == "offset" and value.dim() == 2 and value.shape[0] == value.shape[1]:
            return value.float() - torch.eye(value.shape[0])
        return super().from_published(name, value)


class PLerp(Projection):
    """(1-alpha) P a + alpha b; the divergence compares a with b."""

    published = Published("prog", {"theta": "interpolation_factor", "offset": "lateral_connection.weight"})

    def project(self, a: Tensor) -> Tensor:
        return self.projected(a)


class Proj(Projection):
    """Lerp of a and b; only the divergence uses the projection: it compares P a with b."""

    published = Published("proj", {"theta": "interpolation_factor", "offset": "linear_proj.weight"})
    trained_by_divergence = ("offset",)

    def compared(self, a: Tensor) -> Tensor:
        return self.projected(a)


class MoeSoft(Interpolation):
    """Lerp with alpha = p, the second value of softmax(G h + (0, theta)), G in R^(2 x hidden).

    Softmax over two values is sigmoid((G_1 - G_0).h + theta). G starts small and random, so that tokens differ.
    """

    per_token = True

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.randn(2, hidden_size, dtype=torch.float32) * 0.02 / math.sqrt(hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(_dot(h, self.weight[1] - self.weight[0]) + self._theta(h))


class Moe(MoeSoft):
    """Top-1: each token takes b if p >= 1/2, else a; straight-through, the gradient is that of alpha = p.

    A plain argmax would give the gate no gradient. In the forward pass alpha is exactly 0 or 1, in the backward pass it
    is p, so the LM loss trains the gate through grad . (b - a).
    """

    published = Published("moe", {"theta": "gating.gate_network.0.bias", "weight": "gating.gate_network.0.weight"})

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        p = super().alpha(a, b, h)
        return (p >= 0.5).to(p.dtype) + (p - p.detach())

    @classmethod
    def to_published(cls, name: str, value: Tensor) -> Tensor:
        """Published gates have two biases, and only their difference matters: (0, theta)."""
        return torch.cat([torch.zeros_like(value), value]) if name == "theta" else value

    @classmethod
    def from_published(cls, name: str, value: Tensor) -> Tensor:
        value = super().from_published(name, value)
        return value.diff() if name == "theta" else value


class Gate(Interpolation):
    """Lerp with a per-token alpha that can be exactly 0: alpha = s^2 (3 - 2 s), s = clip(s_0 + w.hn, 0, 1).

    hn = h / sqrt(mean(h^2) + 1e-6), w in R^hidden is 0 at the start, and s_0 is the s at which alpha is sigmoid(theta):
    1/2 for theta = 0. So alpha starts at alpha_start, exactly at 1/2. Where s_0 + w.hn <= 0 the layer passes on a, bit
    for bit, and no gradient reaches its gate or its copy; the derivative of alpha is continuous. Of our own, for
    training with a KL to the base on old text; nearest work: MoE-LPR (arXiv 2408.11396).
    """

    per_token = True
    merged = lerp

    def __init__(self, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> None:
        super().__init__(hidden_size, alpha_start, learned)
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def alpha(self, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        wide = widen(h)
        hn = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        share = torch.sigmoid(self._theta(h))
        start = 0.5 - torch.sin(torch.asin(1 - 2 * share) / 3)
        start = start.where((share > 0) & (share < 1), share)  # the sine of 30 degrees is not 1/2 to the last bit
        s = (start + _dot(hn, self.weight.squeeze(0))).clamp(0, 1)
        return s.square() * (3 - 2 * s)


INTERPOLATIONS: dict[str, type[Interpolation]] = {
    "lerp": Lerp,
    "slerp": Slerp,
    "dlerp": DLerp,
    "dlerpin": DLerpIn,
    "plerp": PLerp,
    "proj": Proj,
    "moe": Moe,
    "moe_soft": MoeSoft,
    "gate": Gate,
}


def build_interpolation(name: str, hidden_size: int, alpha_start: float = 0.5, learned: bool = False) -> Interpolation:
    """Make the interpolation of this name. Raises ConfigError with the nearest known name."""
    if name not in INTERPOLATIONS:
        raise ConfigError(unknown_name("interpolation", name, list(INTERPOLATIONS)))
    return INTERPOLATIONS[name](hidden_size, alpha_start, learned)


def _dot(x: Tensor, w: Tensor) -> Tensor:
    """Compute x.w over hidden: (batch, seq, 1). Autocast leaves product and sum in fp32, but not a matmul."""
    x = widen(x)
    return (x * w.to(x.dtype)).sum(-1, keepdim=True)

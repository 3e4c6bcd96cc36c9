"""Mix the pretrained layer's output a with the expanded layer's output b (paper Fig. 4c).

Shapes: a, b and the layer's input h are (batch, seq, hidden); alpha, the weight of b, is a scalar () or per token
(batch, seq, 1). Half-precision inputs are mixed in fp32, because b - a is small compared with a, and returned in their
own dtype.

A new interpolation is one class here and one line in INTERPOLATIONS; those whose alpha depends on the token are in
`ctrl.gates`. Merging, the published layout and the bench read from the class all that differs between interpolations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ctrl.errors import ConfigError, unknown_name
from ctrl.gates import DLerp, DLerpIn, Gate, Moe, MoeSoft
from ctrl.interpolation_base import Interpolation, Published
from ctrl.numerics import lerp, slerp, widen


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

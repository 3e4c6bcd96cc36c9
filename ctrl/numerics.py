"""What the formulas share: precision inside, and directions."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """fp32 for half types, unchanged otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """x / |x|, and 0 for 0 with a gradient of ordinary size (dividing by a tiny number there gives 1e12)."""
    length = x.norm(dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1.0)

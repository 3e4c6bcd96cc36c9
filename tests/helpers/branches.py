"""Random outputs of two branches and the input of their layer; hypothesis settings for quick checks."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor

HIDDEN = 6
quick = settings(max_examples=25, deadline=None)


def branches(batch: int = 2, seq: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """a, b, h: (batch, seq, hidden), independent."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, seq, HIDDEN, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]

"""Rows of random tokens to train on."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [{"input_ids": row, "labels": row} for row in torch.randint(4, 200, (count, 12))]

"""Count what a training pass keeps for its backward pass."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.trainers import whole_batch


def kept_at_once(model: Any) -> int:
    """Bytes that a pass keeps: a storage that several operations keep counts once."""
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**whole_batch())
    return sum(storage.nbytes() for storage in kept.values())

"""Keep what is needed of a model in a temporary file while another one has the memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ctrl.gap import evaluating, logits


class Parked(Mapping[str, Tensor]):
    """Tensors by name in a file of the machine's temporary folder, read one by one. It is deleted with this object."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "tensors.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
        self._opened: Any = safe_open(file, "pt")
        self._names = list(self._opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: torch.Size(self._opened.get_slice(name).get_shape()) for name in self._names}


class Noted(nn.Module):
    """Give again, in their order, the logits that a model gave for batches, so that it can be changed in place."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        with evaluating(model):
            self._parts = [Parked({"logits": logits(model, batch)}) for batch in batches]
        self._next = iter(self._parts)

    def forward(self, **batch: Any) -> Any:
        return SimpleNamespace(logits=next(self._next)["logits"])

"""Log divergence, alpha and closed gates of each expanded layer, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ctrl.control_model import ControlModel
from ctrl.diagnostics import Log

NEVER = 2**31  # passes between measurements of the weights' change, which reads all of them
FIGURES = ("divergence", "alpha", "closed")


class LayerFigures:
    """Collect means over the tokens of one optimiser step; nothing if the model is not expanded."""

    def __init__(self, model: Any) -> None:
        self.control = model.control if isinstance(model, ControlModel) else None
        self.tokens: dict[int, Tensor | int] = {}  # of each pass, without padding
        self.log = Log(tokens=1, update_every=NEVER, step=0)  # one token: the comparison of branches is not used

    @contextmanager
    def noting(self, tokens: Tensor | int) -> Iterator[None]:
        """Note the pass inside the block; evaluation runs outside of it. tokens: of the batch, without padding."""
        if self.control is None:
            yield
            return
        before, self.control.log = self.control.log, self.log
        try:
            yield
        finally:
            self.control.log = before
            self.tokens[self.log.step] = tokens

    def take(self) -> dict[str, float]:
        """Return the means since the last call: `layers/divergence_07`, `layers/alpha_07`, `layers/closed_07`."""
        counts = torch.stack([torch.as_tensor(count) for count in self.tokens.values()]).tolist() if self.tokens else []
        tokens = dict(zip(self.tokens, counts, strict=True))  # read here, all at once: passes do not wait for the GPU
        figures = {
            f"layers/{name}_{layer:02d}": value
            for name, means in self.log.means(FIGURES, tokens).items()
            for layer, value in means.items()
        }
        self.log.raw.clear()
        self.tokens.clear()
        return figures

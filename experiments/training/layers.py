"""Log divergence, alpha and closed gates of each expanded layer, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ctrl.control_model import ControlModel
from ctrl.diagnostics import Log, attach

NEVER = 2**31  # passes between measurements of the weights' change, which reads all of them
FIGURES = ("divergence", "alpha", "closed")


class LayerFigures:
    """Collect means over the tokens of one optimiser step; nothing if the model is not expanded."""

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, ControlModel) else None
        self.tokens: dict[int, Tensor | int] = {}  # of each pass, without padding
        self.log = Log(tokens=1, update_every=NEVER, step=0)  # one token: the comparison of branches is not used

    @contextmanager
    def noting(self, tokens: Tensor | int) -> Iterator[None]:
        """Note the pass inside the block; evaluation runs outside of it. tokens: of the batch, without padding."""
        if self.model is None:
            yield
            return
        try:
            with attach(self.model, self.log):
                yield
        finally:
            self.tokens[self.log.step] = tokens

    def take(self, summed: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last call: `layers/divergence_07`, `layers/alpha_07`, `layers/closed_07`.

        summed: sums a tensor over all processes, so that each token counts the same wherever it was.
        """
        counts = torch.stack([torch.as_tensor(count) for count in self.tokens.values()]).tolist() if self.tokens else []
        tokens = dict(zip(self.tokens, counts, strict=True))  # read here, all at once: passes do not wait for the GPU
        sums: dict[str, list[float]] = {}  # of the values by their tokens, and of these
        for name, row in itertools.product(FIGURES, self.log.rows):
            total = sums.setdefault(f"layers/{name}_{row.layer:02d}", [0.0, 0.0])
            value, weight = getattr(row, name), tokens.get(row.step, 0)
            if value == value:
                total[:] = total[0] + value * weight, total[1] + weight
        self.log.raw.clear()
        self.tokens.clear()
        if not sums:
            return {}
        every = summed(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        return {name: total / weight for name, (total, weight) in zip(sums, every, strict=True) if weight}

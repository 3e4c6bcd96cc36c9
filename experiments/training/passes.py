"""Count the tokens of a step's passes and find a loss that is no number, without waiting for the GPU in each pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback


class StepPasses:
    """Keep of the passes of one optimiser step: the first loss that is not finite, and how many real tokens they read.

    Both stay on the device. They are read once a step, by `ReadPasses`.
    """

    def __init__(self) -> None:
        self._bad: Tensor | None = None  # 0 while all losses are finite
        self._tokens: Tensor | int = 0

    def note(self, loss: Tensor, tokens: Tensor | int) -> None:
        """Add a pass. loss: detached, a scalar."""
        bad = torch.where(torch.isfinite(loss), torch.zeros_like(loss), loss)
        self._bad = bad if self._bad is None else torch.where(self._bad == 0, bad, self._bad)
        self._tokens = self._tokens + tokens

    def counts(self, device: torch.device) -> Tensor:
        """Return 1 if a loss is not finite, else 0, and the number of tokens: to be summed over processes."""
        bad = torch.zeros((), device=device) if self._bad is None else self._bad
        return torch.stack([(bad != 0).long(), torch.as_tensor(self._tokens, device=bad.device)])

    def broken(self) -> float | None:
        """Return the first loss that is not finite, or None."""
        bad = 0.0 if self._bad is None else float(self._bad)
        return None if math.isfinite(bad) else bad


class ReadPasses(TrainerCallback):
    """Call `read` when all passes of a step are done, before the optimizer steps.

    So weights, averages, records and checkpoints are those of the step before if it raises an error.
    """

    def __init__(self, read: Callable[[], None]) -> None:
        self.read = read

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.read()

"""Muon for the matrices that train, AdamW for all else, as one optimizer: `training.arguments: {optim: muon}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

NAME = "muon"
OURS = "orthogonal"  # key of a group: whether its parameters are Muon's


class MuonAdamW(Optimizer):
    """Replace each matrix's momentum by the nearest matrix with orthonormal rows or columns (Muon, K. Jordan 2024).

    What is no matrix has AdamW's step: norms, biases, alphas, stacked experts. So have embeddings and the head, whose
    rows are words. The numbers of a matrix move by .2 of the rate (root mean square), which is what AdamW moves them by
    after its first steps (arXiv 2502.16982), so learning rates compare. weight_decay: of the parameters in `decayed`,
    which are named as in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        decayed: set[str],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        nothing = [nn.Parameter(torch.zeros(1, 1))]
        self._inner: dict[bool, Any] = {
            True: Muon(nothing, lr=lr, adjust_lr_fn="match_rms_adamw"),
            False: AdamW(nothing, lr=lr, betas=betas, eps=eps),
        }
        super().__init__(list(self._groups(model, decayed, weight_decay)), {})

    def _groups(self, model: nn.Module, decayed: set[str], weight_decay: float) -> Iterator[dict[str, Any]]:
        own = {id(p) for p in matrices(model)}
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for ours, inner in self._inner.items():
            for decays in (True, False):
                mine = [p for n, p in trained if (id(p) in own) == ours and (n in decayed) == decays]
                if mine:
                    yield {**inner.defaults, "params": mine, "weight_decay": decays * weight_decay, OURS: ours}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Do both steps. Each of the two optimizers sees its own groups, with this one's state."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for ours, inner in self._inner.items():
            inner.param_groups = [group for group in self.param_groups if group[OURS] == ours]
            inner.state = self.state
            inner.step()
        return loss


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters that have Muon's step."""
    words = {id(p) for p in of_words(model)}
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in words]


def of_words(model: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters whose rows are words or positions: of embeddings and of the head."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        yield from head.parameters(recurse=False)

"""Diagnostics: what the two branches of each expanded layer do while a model trains or runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ctrl.layer import ExpandedLayer
from ctrl.model import require_expanded


@dataclass(frozen=True)
class LayerStep:
    """One expanded layer in one forward pass, over at most `tokens` of its tokens.

    divergence: mean of the configured distance (nan outside training). alpha, alpha_spread: mean and standard deviation
    over tokens. cosine: mean cos(a, b). relative_l2: mean |b - a| / |a|. update: |W_expanded - W| / |W|, every
    `update_every` passes, else nan.
    """

    step: int
    layer: int
    divergence: float
    alpha: float
    alpha_spread: float
    cosine: float
    relative_l2: float
    update: float


@dataclass
class Log:
    """Rows in the order they came. Figures stay tensors on their device until `rows` is read: no sync per step."""

    tokens: int
    update_every: int
    step: int = -1
    first: int | None = None
    raw: list[tuple[int, int, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> list[LayerStep]:
        return [LayerStep(step, layer, *values.tolist()) for step, layer, values in self.raw]

    def mean(self, name: str) -> dict[int, float]:
        """Mean of one figure over all steps, per layer."""
        by_layer: dict[int, list[float]] = {}
        for row in self.rows:
            by_layer.setdefault(row.layer, []).append(asdict(row)[name])
        return {layer: sum(values) / len(values) for layer, values in by_layer.items()}

    def latest(self) -> dict[str, float]:
        """The last step's figures as flat metrics, `alpha/layer_3`; nan is left out."""
        rows = [LayerStep(s, layer, *v.tolist()) for s, layer, v in self.raw if s == self.step]
        flat = {
            f"{name}/layer_{row.layer}": value
            for row in rows
            for name, value in asdict(row).items()
            if name not in ("step", "layer") and value == value
        }
        return flat

    @torch.no_grad()
    def note(
        self, layer: ExpandedLayer, a: Tensor, b: Tensor, alpha: Tensor, per_token: Tensor | None, mask: Tensor | None
    ) -> None:
        """Called by an expanded layer after each of its passes. mask: real tokens (batch, seq or longer)."""
        if self.first is None or layer.index == self.first:
            self.first, self.step = layer.index, self.step + 1
        real = _real(mask, a)
        shares = alpha.detach().float().expand(*a.shape[:2], 1)[real].squeeze(-1)
        per_token = None if per_token is None else per_token.detach().float()[real]
        some = real.nonzero()[: self.tokens]
        a, b = (x.detach()[some[:, 0], some[:, 1]].float() for x in (a, b))
        length = a.norm(dim=-1).clamp_min(1e-12)
        missing = a.new_tensor(float("nan"))
        figures = [
            missing if per_token is None else per_token.mean(),
            shares.mean(),
            shares.std() if shares.numel() > 1 else shares.new_zeros(()),
            cosine_similarity(a, b, dim=-1).mean(),
            ((b - a).norm(dim=-1) / length).mean(),
            update_size(layer) if self.step % self.update_every == 0 else missing,
        ]
        self.raw.append((self.step, layer.index, torch.stack([f.to(a.device) for f in figures])))


@contextlib.contextmanager
def diagnostics(model: nn.Module, tokens: int = 256, update_every: int = 100) -> Iterator[Log]:
    """Collect figures of every expanded layer in every pass inside the block.

    tokens: how many tokens of a batch the branch comparison looks at. update_every: passes between measurements of the
    weights' change, which reads all of them. `log.rows` is the table, `log.latest()` the last step as metrics.
    """
    log = Log(tokens, update_every)
    with attach(model, log):
        yield log


@contextlib.contextmanager
def attach(model: nn.Module, log: Any) -> Iterator[None]:
    """Inside the block every expanded layer that mixes calls `log.note`, with `Log.note`'s arguments, after a pass."""
    control = require_expanded(model).control
    before, control.log = control.log, log
    try:
        yield
    finally:
        control.log = before


def _real(mask: Tensor | None, like: Tensor) -> Tensor:
    """Which tokens (batch, seq) are real; a mask that covers cached tokens too is longer, its end is taken."""
    if mask is None or mask.dim() != 2:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    return mask[:, -like.shape[1] :].to(like.device).bool()


@torch.no_grad()
def update_size(layer: Any) -> Tensor:
    """|W_expanded - W| / |W| over all parameters the branches have in common (0 for a low-rank copy's shared ones)."""
    expanded = dict(layer.expanded.named_parameters())
    pairs = [(w, expanded[n]) for n, w in layer.named_parameters() if n in expanded]
    change = torch.stack([(e.float() - w.float()).square().sum() for w, e in pairs]).sum()
    size = torch.stack([w.float().square().sum() for w, _ in pairs]).sum()
    return (change / size.clamp_min(1e-30)).sqrt()

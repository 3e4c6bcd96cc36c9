"""Log divergence, alpha and distance of the two branches of each expanded layer while a model trains or runs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ctrl.control_model import require_expanded
from ctrl.divergence import real_or_all
from ctrl.layer import ADDED, ExpandedLayer, expanded_layers
from ctrl.quantised import has_quantised


@dataclass(frozen=True)
class LayerStep:
    """Values of one expanded layer in one forward pass.

    divergence: mean of the configured distance over real tokens (NaN outside training). alpha, alpha_spread: mean and
    standard deviation over real tokens. cosine: mean cos(a, b), relative_l2: mean |b - a| / |a|, both over at most
    `tokens` of them. update: |W_expanded - W| / |W| every `update_every` passes, else NaN. A stacked layer, b = E(a),
    mixes nothing: its divergence and alphas are NaN. Its update starts above 0, since some of its weights were zeroed.
    closed: share of real tokens whose alpha is exactly 0: for them the layer is the pretrained one. NaN if alpha does
    not depend on the token.
    """

    step: int
    layer: int
    divergence: float
    alpha: float
    alpha_spread: float
    cosine: float
    relative_l2: float
    update: float
    closed: float


@dataclass
class Log:
    """Keep the latest rows in order. Values stay on the GPU until they are read, so logging never synchronises."""

    tokens: int
    update_every: int
    step: int = -1
    first: int | None = None
    raw: deque[tuple[int, int, Tensor]] = field(default_factory=deque)

    @property
    def rows(self) -> list[LayerStep]:
        tensors = [values for *_, values in self.raw]
        if len({values.device for values in tensors}) > 1:  # layers on several devices
            tensors = [values.cpu() for values in tensors]
        found = torch.stack(tensors).tolist() if tensors else []  # waits for the GPU once
        return [LayerStep(step, layer, *values) for (step, layer, _), values in zip(self.raw, found, strict=True)]

    def mean(self, name: str, weights: Mapping[int, float] | None = None) -> dict[int, float]:
        """Average one field per layer over the steps that measured it; layers without a value are left out.

        weights: of some steps, such as their numbers of tokens; default: all count the same.
        """
        return self.means((name,), weights)[name]

    def means(self, names: Sequence[str], weights: Mapping[int, float] | None = None) -> dict[str, dict[int, float]]:
        """Return `mean` of several fields by their names. The log is read once."""
        rows = self.rows
        return {name: _mean(rows, name, weights) for name in names}

    def latest(self) -> dict[str, float]:
        """Return the last step as flat metrics, `alpha/layer_3`, without NaN."""
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
        self, layer: ExpandedLayer, a: Tensor, b: Tensor, alpha: Tensor | None, per_token: Tensor | None, mask: Any
    ) -> None:
        """Add a row; an expanded layer calls this after each of its passes.

        a, b: outputs (batch, seq, hidden). alpha: () or (batch, seq, 1), None for a stacked layer. per_token: the
        divergence (batch, seq), None outside training. mask: see `real_or_all`.
        """
        if self.first is None or layer.index == self.first:
            self.first, self.step = layer.index, self.step + 1
        real = real_or_all(mask, a)
        missing = a.new_full((), float("nan"), dtype=torch.float32)
        some, chosen = self._some(real)
        a, b = (x.detach().flatten(0, 1)[some].float() for x in (a, b))
        length = a.norm(dim=-1).clamp_min(1e-12)
        figures = [
            missing if per_token is None else _moments(per_token, real)[0],
            *((missing, missing) if alpha is None else _moments(alpha.expand(*real.shape, 1).squeeze(-1), real)),
            _moments(cosine_similarity(a, b, dim=-1), chosen)[0],
            _moments((b - a).norm(dim=-1) / length, chosen)[0],
            update_size(layer) if self.step % self.update_every == 0 else missing,
            missing if alpha is None or not alpha.dim() else _moments((alpha == 0).squeeze(-1), real)[0],
        ]
        self.raw.append((self.step, layer.index, torch.stack([f.to(a.device) for f in figures])))

    def _some(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the first `tokens` real tokens in (batch * seq), and which of these are real.

        There may be fewer real tokens than asked for. Found by sorting: `nonzero` would have to wait for the GPU.
        """
        flat = real.flatten()
        positions = flat.byte().argsort(descending=True, stable=True)[: self.tokens]
        return positions, flat[positions]


def _mean(rows: Sequence[LayerStep], name: str, weights: Mapping[int, float] | None) -> dict[int, float]:
    by_layer: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        value, weight = getattr(row, name), 1.0 if weights is None else weights.get(row.step, 0.0)
        if value == value and weight:
            by_layer.setdefault(row.layer, []).append((value, weight))
    return {layer: sum(v * w for v, w in own) / sum(w for _, w in own) for layer, own in by_layer.items()}


@contextlib.contextmanager
def diagnostics(model: nn.Module, tokens: int = 256, update_every: int = 100, keep: int = 1000) -> Iterator[Log]:
    """Log every expanded layer once in each forward pass of the model inside the block.

    Blocks may overlap, and see the passes of all threads. Layers that gradient checkpointing runs again and passes of
    the decoder without its head are not logged.

    tokens: number of tokens of a batch on which the branches are compared. update_every: passes between measurements of
    the weights' change, which reads all weights. keep: number of latest passes in the log. `log.rows` is the table,
    `log.latest()` the last step as metrics.
    """
    log = Log(tokens, update_every, raw=deque(maxlen=keep * len(expanded_layers(model))))
    with attach(model, log):
        yield log


@contextlib.contextmanager
def attach(model: nn.Module, log: Any) -> Iterator[None]:
    """Make every expanded layer call `log.note`, with `Log.note`'s arguments, once in each pass inside the block."""
    control = require_expanded(model).control
    control.logs[id(log)] = log
    try:
        yield
    finally:
        control.logs.pop(id(log), None)


def _moments(values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (0 for one value) of the real entries."""
    values, count = values.detach().float(), real.sum()
    mean = values.masked_fill(~real, 0.0).sum() / count
    squares = (values - mean).square().masked_fill(~real, 0.0).sum()
    return mean, (squares / (count - 1).clamp_min(1)).sqrt()


@torch.no_grad()
def update_size(layer: Any) -> Tensor:
    """Compute |W_expanded - W| / |W| over all parameters of the layer; for a low-rank copy W_expanded = W + B A.

    NaN while the weights are offloaded, and if they are quantised.
    """
    if has_quantised(layer):
        return torch.tensor(float("nan"))
    expanded = dict(layer.expanded.named_parameters())
    own = {n: w for n, w in layer.named_parameters() if not n.startswith(ADDED)}
    changes = [expanded[n].float() - w.float() for n, w in own.items() if n in expanded]
    if layer.control.config.expanded == "lora":
        adapters = [m for m in layer.expanded.modules() if hasattr(m, "get_delta_weight")]
        changes += [m.get_delta_weight(name).float() for m in adapters for name in m.active_adapters]
    if any(change.is_meta for change in changes):  # offloaded
        return torch.tensor(float("nan"))
    change, size = (sum(x.float().square().sum() for x in xs) for xs in (changes, own.values()))
    return (change / size.clamp_min(1e-30)).sqrt()

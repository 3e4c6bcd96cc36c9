"""List the layers that were expanded: what trains in them, and their alphas."""

from __future__ import annotations

import dataclasses

from torch import nn

from ctrl.control_model import require_expanded
from ctrl.layer import expanded_layers
from ctrl.quantised import weights_in


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One expanded layer. trainable: number of trainable parameters.

    alpha: that of `ctrl.at_alpha` inside its block, else sigmoid(theta), of which the alpha of a token is made if it
    has one of its own (per_token). None for a stacked layer, NaN if theta is sharded and another process holds it.
    """

    layer: int
    branch: str
    trainable: int
    alpha: float | None
    per_token: bool = False


class Description(list[LayerInfo]):
    """Rows of `describe`; prints as a table. trainable, parameters: how many train in the whole model, of how many."""

    trainable: int
    parameters: int

    def __str__(self) -> str:
        rows = [f"{'layer':>5}  {'branch':<7} {'trainable':>13}  {'alpha':>6}"]
        for row in self:
            alpha = "-" if row.alpha is None else f"{row.alpha:.3f}{'*' * row.per_token}"
            rows.append(f"{row.layer:>5}  {row.branch:<7} {row.trainable:>13,}  {alpha:>6}")
        rows.append(f"{'sum':>5}  {'':<7} {sum(row.trainable for row in self):>13,}")
        share = 100 * self.trainable / max(self.parameters, 1)
        counts = f"trainable params: {self.trainable:,} || all params: {self.parameters:,}"
        rows.append(f"{counts} || trainable%: {share:.4f}")
        if any(row.per_token for row in self):
            rows.append("* sigmoid(theta): each token has an alpha of its own, whose mean ctrl.diagnostics measures")
        return "\n".join(rows)


def describe(model: nn.Module) -> Description:
    """List the expanded layers with kind, trainable parameters and alpha; printed, with the share that trains.

    Raises ConfigError for a plain model.
    """
    expanded, rows = require_expanded(model), Description()
    rows.trainable = sum(p.numel() for p in expanded.parameters() if p.requires_grad)
    lora = expanded.control.config.expanded == "lora"  # offloading makes two of each weight that these copies share
    names = expanded.named_parameters()
    rows.parameters = sum(weights_in(p) for n, p in names if p.requires_grad or not (lora and ".expanded." in n))
    for layer in expanded_layers(expanded):
        mix, alpha, gated = layer.interpolation, None, False
        if mix is not None:
            alpha = mix.local_alpha() if mix.fixed_alpha is None else mix.fixed_alpha.item()
            gated = mix.per_token and mix.fixed_alpha is None
        trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        rows.append(LayerInfo(layer.index, layer.kind, trainable, alpha, gated))
    return rows

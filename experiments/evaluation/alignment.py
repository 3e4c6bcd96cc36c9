"""What moved inside: hidden states of analogy sentences, tuned against base and expanded against pretrained branch.

Paper Fig. 3, 8 and Table 6. One state per sentence and layer: that of the last token, after the decoder layer and
before the final norm. All comparisons are pure functions of such arrays (sentences, hidden), in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.diagnostics import attach, update_size
from ctrl.layer import ExpandedLayer
from ctrl.model import ControlModel
from ctrl.structure import decoder_layers
from experiments.data.tokens import pad, pad_id

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
NEIGHBOURS = 5

PAIRS = {
    "gender": "king:queen man:woman actor:actress waiter:waitress uncle:aunt nephew:niece",
    "past tense": "swim:swam fly:flew see:saw go:went",
    "capital": "Paris:France Tokyo:Japan Brasilia:Brazil Ottawa:Canada",
    "currency": "Russia:ruble Japan:yen United_States:dollar United_Kingdom:pound",
    "plural": "dog:dogs mouse:mice goose:geese child:children",
    "comparative": "good:better cold:colder",
    "product": "Apple:iPhone Microsoft:Windows",
    "language": "Spain:Spanish Italy:Italian",
    "whole": "tree:forest building:city",
}


def sentences() -> list[tuple[str, str]]:
    """(category, sentence): "X is to Y" for each pair of Table 6, then "Y is to X", so that both words end one. 60."""
    pairs = [(c, *p.replace("_", " ").split(":")) for c, text in PAIRS.items() for p in text.split()]
    return [(c, f"{x} is to {y}") for c, x, y in pairs] + [(c, f"{y} is to {x}") for c, x, y in pairs]


@dataclass
class States:
    """States of the n sentences' last tokens. layers: (layers, n, hidden), what leaves each decoder layer.

    By index of an expanded layer whose branches are mixed (none in a plain model, nor where a copy is stacked):
    pretrained, expanded: (n, hidden), what its two branches give; alpha: the share of the expanded one (n,).
    """

    layers: Array
    pretrained: dict[int, Array] = field(default_factory=dict)
    expanded: dict[int, Array] = field(default_factory=dict)
    alpha: dict[int, Array] = field(default_factory=dict)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> States:
    """One forward pass over the probe sentences, right-padded."""
    ids = [list(tokenizer(sentence)["input_ids"]) for _, sentence in sentences()]
    last = torch.tensor([len(row) - 1 for row in ids])
    batch = {
        "input_ids": pad(ids, pad_id(tokenizer)).to(model.device),
        "attention_mask": pad([[1] * len(row) for row in ids], 0).to(model.device),
    }
    branches = _Branches(last)
    mixing = attach(model, branches) if _is_expanded(model) else nullcontext()
    with _outputs(decoder_layers(model), last) as found, mixing:
        model(**batch, use_cache=False, logits_to_keep=1)
    return States(np.stack(found), branches.pretrained, branches.expanded, branches.alpha)


class _Branches:
    """What an expanded layer reports to: keeps both branches and alpha at the last token."""

    def __init__(self, last: Tensor) -> None:
        self.last = last
        self.pretrained: dict[int, Array] = {}
        self.expanded: dict[int, Array] = {}
        self.alpha: dict[int, Array] = {}

    def note(self, layer: ExpandedLayer, a: Tensor, b: Tensor, alpha: Tensor, *_: Any) -> None:
        self.pretrained[layer.index] = _at(a, self.last)
        self.expanded[layer.index] = _at(b, self.last)
        self.alpha[layer.index] = _at(alpha.expand(*a.shape[:2], 1), self.last)[:, 0]


@contextmanager
def _outputs(layers: nn.ModuleList, last: Tensor) -> Iterator[list[Array]]:
    """Inside the block each layer appends its output at the last token, in the order in which they run."""
    found: list[Array] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        found.append(_at(out[0] if isinstance(out, tuple) else out, last))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _at(states: Tensor, last: Tensor) -> Array:
    """(batch, seq, hidden) -> (batch, hidden) at one position each, fp64 on the CPU."""
    rows = torch.arange(len(last), device=states.device)
    return states[rows, last.to(states.device)].double().cpu().numpy()


def cosine(x: Array, y: Array) -> float:
    """Mean over sentences of cos(x_i, y_i)."""
    return float((_unit(x) * _unit(y)).sum(axis=1).mean())


def relative_l2(x: Array, y: Array) -> float:
    """Mean over sentences of |y_i - x_i| / |x_i|."""
    return float((np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1).clip(1e-30)).mean())


def cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment (arXiv 1905.00414): <K, L> / (|K| |L|), K = X X^T, L = Y Y^T, columns centred.

    1 for states that are the same up to rotation and scale; NaN where all sentences have one state.
    """
    first, second = (c @ c.T for c in (_centred(x), _centred(y)))
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum() / size) if size > 0 else float("nan")


def neighbours(x: Array, y: Array, k: int = NEIGHBOURS) -> float:
    """Mean over sentences of the share of the k nearest others (by cosine) in x that are among the k nearest in y.

    Chance is k / (n - 1). Raises ValueError unless 1 <= k <= n - 2: with k = n - 1 all others are near in both.
    """
    if not 1 <= k <= len(x) - 2:
        raise ValueError(f"k={k}: {len(x)} sentences have a neighbourhood for k in 1..{len(x) - 2}")
    shared = (_nearest(x, k) & _nearest(y, k)).sum(axis=1)
    return float(shared.mean() / k)


METRICS = {"cosine": cosine, "relative_l2": relative_l2, "cka": cka, "neighbours": neighbours}


def projection(base: Array, tuned: Array) -> tuple[Array, Array]:
    """Both on the base's first two principal axes, (n, 2) each, with the base's mean at 0: what moved is seen to move.

    An axis points to where its largest weight is positive.
    """
    mean = base.mean(axis=0)
    axes = np.linalg.svd(base - mean, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    return (base - mean) @ axes.T, (tuned - mean) @ axes.T


def layer_table(base: States, tuned: States) -> pd.DataFrame:
    """Tuned against base: one row a layer, one column a metric. Raises ValueError where the shapes differ."""
    if base.layers.shape != tuned.layers.shape:
        raise ValueError(
            f"base has states {base.layers.shape}, tuned {tuned.layers.shape} (layers, sentences, hidden): compare a "
            "model with the base it was tuned from"
        )
    return _table({i: (x, y) for i, (x, y) in enumerate(zip(base.layers, tuned.layers, strict=True))})


def branch_table(states: States) -> pd.DataFrame:
    """Expanded against pretrained branch: one row an expanded layer, one column a metric, and the mean alpha."""
    table = _table({i: (states.pretrained[i], states.expanded[i]) for i in sorted(states.expanded)})
    table["alpha"] = [float(states.alpha[i].mean()) for i in table.index]
    return table


@torch.no_grad()
def update_sizes(base: PreTrainedModel, tuned: PreTrainedModel) -> pd.Series:
    """|W - W_base| / |W_base| per layer, over all of its parameters.

    In an expanded layer W is the copy's, also where it is stacked: there it says how far the copy is from its layer.
    """
    import pandas as pd

    sizes = [_update(before, after) for before, after in zip(decoder_layers(base), decoder_layers(tuned), strict=True)]
    return pd.Series(sizes, index=pd.RangeIndex(len(sizes), name="layer"), name="update")


def _update(before: nn.Module, after: nn.Module) -> float:
    if isinstance(after, ExpandedLayer):
        return float(update_size(after))
    old, now = dict(before.named_parameters()), dict(after.named_parameters())
    if old.keys() != now.keys():
        raise ValueError("the tuned layers have other parameters than the base's: merge adapters into them first")
    change = sum(float((now[name].to(w.device).double() - w.double()).square().sum()) for name, w in old.items())
    size = sum(float(w.double().square().sum()) for w in old.values())
    return float((change / max(size, 1e-30)) ** 0.5)


def _is_expanded(model: nn.Module) -> bool:
    return any(isinstance(module, ControlModel) for module in model.modules())


def _table(pairs: dict[int, tuple[Array, Array]]) -> pd.DataFrame:
    import pandas as pd

    rows = {i: {name: metric(x, y) for name, metric in METRICS.items()} for i, (x, y) in pairs.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(METRICS)).rename_axis("layer")


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-30)


def _centred(x: Array) -> Array:
    return x - x.mean(axis=0)


def _nearest(x: Array, k: int) -> NDArray[np.bool_]:
    """(n, n): whether column j is among the k nearest of row i, itself left out. Ties go to the first."""
    similar = _unit(x) @ _unit(x).T
    np.fill_diagonal(similar, -np.inf)
    near = np.zeros(similar.shape, dtype=bool)
    np.put_along_axis(near, np.argsort(-similar, axis=1, kind="stable")[:, :k], True, axis=1)
    return near

"""Suite `alignment`: how hidden states moved, from base to tuned model and from pretrained to expanded branch.

Sentences and idea: arXiv 2501.10979, Fig. 3, 8 and Table 6. One state per sentence and layer: that of the last token,
after the decoder layer and before the final norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.control_model import ControlModel
from ctrl.diagnostics import attach
from ctrl.layer import ExpandedLayer
from ctrl.structure import decoder_layers
from experiments.evaluation.similarity import METRICS, Array
from experiments.evaluation.suite import DrawnSuite, PreparedSuite, SuiteContext
from experiments.evaluation.weights import update_sizes
from experiments.models.base import stored_base
from experiments.models.sharing import Progress, each
from experiments.models.tokens import pad, pad_id, text_ids
from experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

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
    """Return 60 pairs (category, sentence): "X is to Y" for each pair of Table 6, then "Y is to X"."""
    pairs = [(c, *p.replace("_", " ").split(":")) for c, text in PAIRS.items() for p in text.split()]
    return [(c, f"{x} is to {y}") for c, x, y in pairs] + [(c, f"{y} is to {x}") for c, x, y in pairs]


@dataclass
class States:
    """Hidden states of the last tokens of n sentences. layers: outputs of the decoder layers, (layers, n, hidden).

    By index of an expanded layer that mixes two branches (a plain model or a stacked copy has none): pretrained,
    expanded: outputs of the branches, (n, hidden); alpha: share of the copy in the mix, (n,).
    """

    layers: Array
    pretrained: dict[int, Array] = field(default_factory=dict)
    expanded: dict[int, Array] = field(default_factory=dict)
    alpha: dict[int, Array] = field(default_factory=dict)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> States:
    """Run one forward pass over the sentences, right-padded, and return their states."""
    ids = [text_ids(tokenizer, sentence) for _, sentence in sentences()]
    last = torch.tensor([len(row) - 1 for row in ids])
    batch = {
        "input_ids": pad(ids, pad_id(tokenizer)).to(model.device),
        "attention_mask": pad([[1] * len(row) for row in ids], 0).to(model.device),
    }
    branches = Branches(last)
    mixing = attach(model, branches) if _is_expanded(model) else nullcontext()
    with _outputs(decoder_layers(model), last) as found, mixing:
        model(**batch, use_cache=False, logits_to_keep=1)
    return States(np.stack(found), branches.pretrained, branches.expanded, branches.alpha)


class Branches:
    """Observer of expanded layers: keeps both branches and alpha at the last token."""

    def __init__(self, last: Tensor) -> None:
        self.last = last
        self.pretrained: dict[int, Array] = {}
        self.expanded: dict[int, Array] = {}
        self.alpha: dict[int, Array] = {}

    def note(self, layer: ExpandedLayer, a: Tensor, b: Tensor, alpha: Tensor | None, *_: Any) -> None:
        if alpha is None:
            return  # a stacked layer has one branch
        self.pretrained[layer.index] = _at(a, self.last)
        self.expanded[layer.index] = _at(b, self.last)
        self.alpha[layer.index] = _at(alpha.expand(*a.shape[:2], 1), self.last)[:, 0]


@contextmanager
def _outputs(layers: nn.ModuleList, last: Tensor) -> Iterator[list[Array]]:
    """Collect each layer's output at the last token inside the block, in the order of the layers."""
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
    """Select one position per row: (batch, seq, hidden) -> (batch, hidden), in fp64 on the CPU."""
    rows = torch.arange(len(last), device=states.device)
    return states[rows, last.to(states.device)].double().cpu().numpy()


class AlignmentSuite(DrawnSuite):
    """One record per layer and metric; the task is the name of the metric, such as cosine.

    Form `base`: the model against the base model, with the size of the weights' update as a further task. Form
    `branches`: the expanded against the pretrained branch, with mean and standard deviation of alpha.
    """

    name = "alignment"
    version = 2  # Procrustes

    @property
    def longest(self) -> int:
        return max(len(text_ids(self.tokenizer, sentence)) for _, sentence in sentences())

    def content(self) -> Any:
        return [sentences(), [text_ids(self.tokenizer, sentence) for _, sentence in sentences()]]

    def prepare(self, base: PreTrainedModel, state: Mapping[str, Any], folder: Path | None) -> AlignmentWithBase:
        """Compute the base model's states. They are not saved: one forward pass computes them again."""
        return AlignmentWithBase(hidden_states(base, self.tokenizer), self.tokenizer, self.context)


@dataclass(frozen=True, eq=False)
class AlignmentWithBase(PreparedSuite):
    """Compare the states of any model with the base's."""

    name = AlignmentSuite.name
    base: States
    tokenizer: PreTrainedTokenizerBase
    context: SuiteContext

    @property
    def size(self) -> int:
        return len(sentences())

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        (records,) = each([model], self._compared, progress, lambda _: self.size)
        yield from records

    def _compared(self, model: PreTrainedModel) -> list[Record]:
        states = hidden_states(model, self.tokenizer)
        branches = _records("branches", branch_table(states)) if states.expanded else ()
        return [*_records("base", layer_table(self.base, states)), *branches]

    def measure_weights(self, model: PreTrainedModel) -> Iterator[Record]:
        """Return the update of each layer. The base is read from disk, so it takes no memory during training."""
        sizes = update_sizes(stored_base(self.context.base_model, self.context.remote_code), model)
        yield from _records("base", sizes.to_frame())


def _records(form: str, table: pd.DataFrame) -> Iterator[Record]:
    for metric in table.columns:
        for layer, value in table[metric].items():
            yield Record(AlignmentSuite.name, str(metric), form, f"layer {layer:02}", value=float(value))


def records_table(records: Iterable[Record], form: str = "base") -> pd.DataFrame:
    """Return the records of this suite as a table: one row per layer, one column per metric."""
    import pandas as pd

    values: dict[str, dict[int, float | None]] = {}
    for record in records:
        if record.suite == AlignmentSuite.name and record.form == form:
            values.setdefault(record.task, {})[int(record.item.removeprefix("layer "))] = record.value
    return pd.DataFrame(values).sort_index().rename_axis("layer")


def layer_table(base: States, tuned: States) -> pd.DataFrame:
    """Compare tuned and base states: one row per layer, one column per metric. Raises ValueError if shapes differ."""
    if base.layers.shape != tuned.layers.shape:
        raise ValueError(
            f"base has states {base.layers.shape}, tuned {tuned.layers.shape} (layers, sentences, hidden): compare a "
            "model with the base it was tuned from"
        )
    return _table({i: (x, y) for i, (x, y) in enumerate(zip(base.layers, tuned.layers, strict=True))})


def branch_table(states: States) -> pd.DataFrame:
    """Compare the branches: one row per expanded layer, one column per metric.

    Two more columns hold mean and standard deviation of alpha over the sentences.
    """
    table = _table({i: (states.pretrained[i], states.expanded[i]) for i in sorted(states.expanded)})
    table["alpha"] = [float(states.alpha[i].mean()) for i in table.index]
    table["alpha_spread"] = [float(states.alpha[i].std()) for i in table.index]
    return table


def _is_expanded(model: nn.Module) -> bool:
    return any(isinstance(module, ControlModel) for module in model.modules())


def _table(pairs: dict[int, tuple[Array, Array]]) -> pd.DataFrame:
    import pandas as pd

    rows = {i: {name: metric(x, y) for name, metric in METRICS.items()} for i, (x, y) in pairs.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(METRICS)).rename_axis("layer")

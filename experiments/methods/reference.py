"""The base model next to the one that trains: the same weights with copies or adapters off, or one more copy."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

import ctrl
from ctrl.control_model import ControlModel
from ctrl.gap import evaluating
from ctrl.numerics import widen
from ctrl.sharded import sharded
from experiments.methods.active import ActiveTerm
from experiments.methods.base import MethodContext
from experiments.methods.batches import Batch
from experiments.methods.saving import is_peft
from experiments.models.head import inner, why_whole

TAKE_OUT = ("pissa", "corda", "olora", "loftq", "lora_ga")  # starts of LoRA that change the weights of the base
REDRAWN = ("pissa_niter", "lora_ga")  # of these, what PEFT starts in another way when it loads the adapter
UNREAD = ("labels", "shift_labels", "replayed", "documents")  # values of a batch that no logits depend on


@dataclass(frozen=True)
class BaseLogits:
    """What the base model says of the counted tokens of one batch.

    kept: hidden states before the head, (tokens, width); without a head, the logits, (tokens, vocabulary).
    """

    kept: Tensor
    head: Any

    @torch.no_grad()
    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Return the base's logits of some of the counted tokens, (tokens, vocabulary), in fp32 or wider."""
        kept = self.kept[rows]
        return widen(kept if self.head is None else F.linear(kept, self.head.weight, self.head.bias))


class Reference:
    """Compute what the base model says of a batch. Make it before training, while the model still computes that.

    shares_weights: whether it is the model itself with its copies or adapters switched off, at no memory. It keeps the
    hidden states before the head, so that logits exist for some tokens at a time; models that do more with their logits
    (`why_whole`) have them all kept.
    """

    def __init__(self, model: PreTrainedModel, context: MethodContext) -> None:
        self.shares_weights, self.precision = has_base(model), context.precision
        with self.precision.autocast():
            self.by_states = why_whole(model) is None
        self.copy: Any = None
        if not self.shares_weights:
            self.copy = copy.deepcopy(model).requires_grad_(False).eval()
            context.precision.hold_frozen(self.copy)

    @torch.no_grad()
    def read(self, model: Any, batch: Batch, counted: Tensor) -> BaseLogits:
        """Run the base on the rows of a batch that have counted tokens. counted: a mask (batch, kept)."""
        head = inner(model if self.shares_weights else self.copy).get_output_embeddings()
        rows = counted.any(1)
        if not rows.any():
            if not (self.shares_weights and sharded(model)):  # shards: all processes make the pass together
                return BaseLogits(torch.empty(0), head if self.by_states else None)
            rows[0] = True
        inputs = {k: _of_rows(v, rows) for k, v in batch.items() if k not in UNREAD}
        where: AbstractContextManager[Any] = nullcontext()
        if self.shares_weights:
            where = model.disable_adapter() if is_peft(model) else ctrl.pretrained(model)
        with where, evaluating(model), self.precision.autocast():  # no dropout: the base is one distribution
            kept = self._pass(model if self.shares_weights else self.copy, inputs)[counted[rows]]
        return BaseLogits(kept, head if self.by_states else None)

    def _pass(self, base: Any, inputs: Batch) -> Tensor:
        """Return the hidden states before the head, (rows, kept, width), or the logits, (rows, kept, vocabulary)."""
        if not self.by_states:
            logits: Tensor = base(**inputs).logits
            return logits
        states: list[Tensor] = []

        def note(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states.extend(args)
            return (args[0][:, :0],)

        hook = inner(base).get_output_embeddings().register_forward_pre_hook(note)
        try:
            base(**inputs)
        finally:
            hook.remove()
        return states[0]


class AtLabels(ActiveTerm):
    """Base of loss terms in training that read the base model: at all labelled tokens, and their labels.

    A plan of the run counts the copy of the base that they keep (`Reference`).
    """

    def __init__(self, term: Any, model: PreTrainedModel, context: MethodContext) -> None:
        self.term, self.base = term, Reference(model, context)

    def begin_pass(self, model: Any, batch: Batch) -> tuple[BaseLogits, Tensor]:
        """Return the base's logits of the labelled tokens, and their labels."""
        labelled = batch["shift_labels"] != -100
        return self.base.read(model, batch, labelled), batch["shift_labels"][labelled]


def _of_rows(value: Any, rows: Tensor) -> Any:
    """Return the marked rows of a tensor (batch, ...); other values, and all if all rows are marked, as they are."""
    is_batch = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(rows)
    return value[rows] if is_batch and not rows.all() else value


def keeps_base(model: Any) -> bool:
    """Return whether adapters of PEFT leave all weights of the base as they are, so that it is there without them.

    `bias: all` and `lora_only` train biases of the base itself. Some starts of LoRA take a part out of its weights.
    """
    configs = model.peft_config.values()
    starts = [str(getattr(config, "init_lora_weights", True)).lower() for config in configs]
    return not any(getattr(config, "bias", "none") != "none" for config in configs) and not any(
        start.startswith(TAKE_OUT) for start in starts
    )


def has_base(model: Any) -> bool:
    """Return whether a model, before training, computes what the base does with its copies or adapters switched off.

    CorDA's adapters do not start at zero: without them a part of the base is missing.
    """
    if is_peft(model):
        return keeps_base(model) and not any(p.any() for name, p in model.named_parameters() if ".lora_B." in name)
    return isinstance(model, ControlModel)

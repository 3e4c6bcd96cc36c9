"""The base model next to the one that trains: the same weights with copies or adapters off, or one more copy."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.control_model import ControlModel
from ctrl.gap import evaluating
from experiments.methods.base import MethodContext
from experiments.methods.batches import Batch
from experiments.methods.saving import is_peft


class Reference:
    """Compute what the base model says of a batch. Make it before training, while the model still computes that.

    shares_weights: whether it is the model itself with its copies or adapters switched off, at no memory.
    """

    def __init__(self, model: PreTrainedModel, context: MethodContext) -> None:
        self.shares_weights, self.precision = has_base(model), context.precision
        self.copy: Any = None
        if not self.shares_weights:
            self.copy = copy.deepcopy(model).requires_grad_(False).eval()
            context.precision.hold_frozen(self.copy)

    @torch.no_grad()
    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Return the base's logits (batch, kept, vocabulary) at the positions that the batch keeps."""
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "shift_labels", "replayed")}
        where: AbstractContextManager[Any] = nullcontext()
        if self.shares_weights:
            where = model.disable_adapter() if is_peft(model) else ctrl.pretrained(model)
        with where, evaluating(model), self.precision.autocast():  # no dropout: the base is one distribution
            logits: Tensor = (model if self.shares_weights else self.copy)(**inputs).logits
        return logits


def has_base(model: Any) -> bool:
    """Return whether a model, before training, computes what the base does with its copies or adapters switched off.

    CorDA's adapters do not start at zero: without them a part of the base is missing.
    """
    if is_peft(model):
        return not any(p.any() for name, p in model.named_parameters() if ".lora_B." in name)
    return isinstance(model, ControlModel)

"""Predict with several models at once: the ensemble of LAE, as one model that is measured like any other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ctrl.classes import made_once
from experiments.evaluation.reply_log_probs import fp32_head


class Ensembled:
    """Mixin in front of a model's class: p(y) = max_i p_i(y) / sum_y max_i p_i(y), i over the model and `others`.

    Each sequence is read as a whole: one cache cannot serve several models. Hidden states are those of the model.
    """

    others: nn.ModuleList

    def forward(self, *args: Any, past_key_values: Any = None, use_cache: Any = None, **inputs: Any) -> Any:
        if past_key_values is not None:
            raise ValueError("past_key_values: an ensemble of models has no cache, call it with use_cache=False")
        found = super().forward(*args, use_cache=False, **inputs)  # type: ignore[misc]
        logits = [found.logits]
        wide = "forward" in vars(self.get_output_embeddings())  # type: ignore[attr-defined]  # in `fp32_head`
        for other in self.others:
            with fp32_head(other) if wide else nullcontext():  # type: ignore[arg-type]
                logits.append(other(*args, use_cache=False, **inputs).logits)
        found.logits = largest(logits)
        return found


def largest(logits: Sequence[Tensor]) -> Tensor:
    """Return the log-probabilities of `Ensembled`, in fp32. logits: of each model, (..., vocabulary)."""
    best = functools.reduce(torch.maximum, (one.float().log_softmax(-1) for one in logits))
    return best.log_softmax(-1)


@made_once
def ensemble_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make a class of models that predict together with others."""
    return type(f"Ensemble{cls.__name__}", (Ensembled, cls), {})


def together(model: PreTrainedModel, others: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """Turn a model into the ensemble of itself and others, in place."""
    model.__class__ = ensemble_class(type(model))
    model.others = nn.ModuleList(others)
    return model

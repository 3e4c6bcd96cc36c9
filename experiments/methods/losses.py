"""Penalties: distances from the base, in outputs (KL) or weights (L2-SP, EWC). Weights of tokens: `token_weights`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ctrl.sharded import sharded
from experiments.methods.base import LossTerm, MethodContext
from experiments.methods.batches import Batch, micro_batch_fraction, replayed_positions, single_rows
from experiments.methods.reference import Reference
from experiments.methods.weights import snapshot, trainable
from experiments.models.precision import Precision

CHUNK = 64  # tokens of the vocabulary-sized comparison at a time


class Kl(LossTerm):
    """Penalise the KL to the base model: weight * sum over tokens of KL(base || trained) / labelled tokens of the step.

    Computed over the whole vocabulary in fp32. The tokens are the labelled ones, or (`tokens: replayed`) only the
    replayed ones of them; the others then count as 0.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    tokens: Literal["all", "replayed"] = Field("all", description="all labelled tokens, or the replayed ones of them")
    _base: Any = PrivateAttr(None)

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        self._base = Reference(model, context)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        labelled = batch["shift_labels"] != -100
        counted = labelled & replayed_positions(batch) if self.tokens == "replayed" else labelled
        total = labelled.sum().clamp_min(1) if total is None else total
        if not counted.any() and not (self._base.shares_weights and sharded(model)):  # shards: a pass of all processes
            return outputs.logits.new_zeros((), dtype=torch.float32)
        base = self._base.logits(model, batch)
        return self.weight * kl_sum(base[counted], outputs.logits[counted]) / total

    @property
    def reads_logits(self) -> bool:
        return True

    @property
    def needs_replay(self) -> bool:
        return self.tokens == "replayed"


def kl_sum(base: Tensor, tuned: Tensor) -> Tensor:
    """Sum KL(base || trained) over tokens, in nats, from logits (tokens, vocabulary).

    The log-softmax is fp32, in chunks whose intermediate values are computed again in the backward pass.
    """
    parts = [
        checkpoint(_kl, p, q, use_reentrant=False) for p, q in zip(base.split(CHUNK), tuned.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum()


def _kl(base: Tensor, tuned: Tensor) -> Tensor:
    p, q = base.float().log_softmax(-1), tuned.float().log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="sum")


class L2sp(LossTerm):
    """Penalise distance from the start: weight / 2 * |theta - theta_0|^2 over what trains (arXiv 1802.01483)."""

    weight: float = Field(0.01, ge=0, description="factor of the term")
    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    reads_weights: ClassVar[bool] = True

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        self._start = snapshot(model)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        squares = [(p - self._start[name]).square().sum() for name, p in trainable(model).items()]
        return self.weight / 2 * torch.stack(squares).sum() * micro_batch_fraction(batch, total)


class Ewc(LossTerm):
    """Penalise changes of weights that old text needs: weight / 2 * sum_i F_i (theta_i - theta_0i)^2.

    EWC (arXiv 1612.00796). F is the diagonal Fisher information per token: F_i = sum over rows of g_i^2 / labelled
    tokens, with g the gradient of a row's summed log-likelihood on old text at the start. If the base wrote that text,
    its tokens are drawn from the model itself: this then estimates the Fisher information proper, and half the
    quadratic form is the KL per token to second order.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    batches: int = Field(4, ge=1, description="batches of old text that F is estimated on")
    _start: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _fisher: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    reads_weights: ClassVar[bool] = True
    reads_old: ClassVar[bool] = True

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        self._start = snapshot(model)
        self._fisher = fisher(model, list(single_rows(context.old(self.batches), model.device)), context.precision)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        terms = [(self._fisher[name] * (p - self._start[name]).square()).sum() for name, p in trainable(model).items()]
        return self.weight / 2 * torch.stack(terms).sum() * micro_batch_fraction(batch, total)


def fisher(model: PreTrainedModel, rows: list[dict[str, Any]], precision: Precision) -> dict[str, Tensor]:
    """Estimate the diagonal F of `Ewc`, by name of the trained weight. rows: single sequences (1, seq) with labels."""
    parameters, tokens = trainable(model), 0
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    training = model.training
    model.eval()
    for row in rows:
        inputs = {k: v for k, v in row.items() if k != "labels"}
        labels = row["labels"][0, 1:]
        with precision.autocast():
            logits = model(**inputs).logits[0, :-1]
        nll = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
        gradients = torch.autograd.grad(nll, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
        tokens += int((labels != -100).sum())
    model.train(training)
    return {name: total / max(tokens, 1) for name, total in sums.items()}

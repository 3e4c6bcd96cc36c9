"""Penalties that distil the base model: at tokens that are wrong now (MUSCLE), or with swapped logits."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from experiments.methods.active import TokenPenalty, Tokens
from experiments.methods.base import LossTerm
from experiments.methods.losses import kl
from experiments.methods.reference import AtLabels


class ToBaseWhereWrong(AtLabels):
    """`Muscle` in training: holds the base model."""

    def penalty_of(self, tokens: Tokens) -> TokenPenalty | None:
        base, labels = tokens.noted
        rows = (tokens.logits.argmax(-1) != labels[tokens.rows]).nonzero().squeeze(-1)
        if not len(rows):
            return None
        log_p = tokens.logits[rows] - tokens.log_sum[rows]
        return weighted_kl(self.term.weight, base.logits(tokens.rows)[rows], log_p, rows)


class Muscle(LossTerm):
    """Penalise the KL to the base where the model is wrong: + weight * sum of KL(base || trained) / labelled tokens.

    The sum is over labelled tokens whose label is not the likeliest one for the model that trains: what it cannot say
    right it says as the base does. From MUSCLE (arXiv 2407.09435), which aligns an adapter with the old model at these
    tokens, and at the others with a task model trained before; in place of the latter there is the cross-entropy here.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    active: ClassVar[type[Any]] = ToBaseWhereWrong


class ToSwappedBase(AtLabels):
    """`LogitSwap` in training: holds the base model."""

    def penalty_of(self, tokens: Tokens) -> TokenPenalty | None:
        base, labels = tokens.noted
        teacher = swapped(base.logits(tokens.rows), labels[tokens.rows])
        rows = labels.new_tensor(range(len(teacher)))
        return weighted_kl(self.term.weight, teacher, tokens.logits - tokens.log_sum, rows)


class LogitSwap(LossTerm):
    """Distil the base after its mistakes are put right: + weight * sum of KL(teacher || trained) / labelled tokens.

    The teacher is the base model with two logits exchanged, that of the label and the largest one, where they differ.
    So the label is the likeliest token, and all other tokens keep the probabilities that the base gives them. This is
    the teacher of swapped logit distillation (arXiv 2504.20108), at temperature 1, next to the cross-entropy.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    active: ClassVar[type[Any]] = ToSwappedBase


def swapped(logits: Tensor, labels: Tensor) -> Tensor:
    """Exchange each row's largest logit and that of its label. logits: (tokens, vocabulary)."""
    label, (largest, at) = labels[:, None], logits.max(-1, keepdim=True)
    return logits.scatter(-1, at, logits.gather(-1, label)).scatter_(-1, label, largest)


def weighted_kl(weight: float, teacher: Tensor, log_p: Tensor, rows: Tensor) -> TokenPenalty:
    """Return weight * KL(teacher || p) of some rows. teacher: logits, log_p: log-probabilities, (rows, vocabulary)."""
    log_q = teacher - teacher.logsumexp(-1, keepdim=True)  # as for p: equal logits have a KL of exactly 0
    value, slope = kl(log_q, log_p)
    return TokenPenalty(weight * value, rows, slope.mul_(weight))

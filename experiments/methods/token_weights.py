"""Loss terms that weigh each labelled token: the loss is sum_i w_i (-log p_i) / labelled tokens, w_i as a constant."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from experiments.methods.active import Tokens
from experiments.methods.base import LossTerm
from experiments.methods.batches import Batch, replayed_positions
from experiments.methods.losses import Kl, KlToBase
from experiments.methods.reference import AtLabels


class Dft(LossTerm):
    """Weight each token's loss by its own probability: w = p (DFT, arXiv 2508.05629).

    A token that the model finds unlikely then moves it less.
    """

    def token_weights(self, log_p: Tensor) -> Tensor:
        return log_p.exp()


class Eaft(LossTerm):
    """Weight by the entropy of the model's likeliest tokens: w = H / ln k (EAFT, arXiv 2601.02151).

    H is the entropy of the k = `top` likeliest tokens, whose probabilities are made to sum to 1; ln k is its largest
    value. Where the model is sure, it learns little.
    """

    top: int = Field(20, ge=2, description="k, the number of likeliest tokens")

    def weights_of(self, tokens: Tokens) -> Tensor:
        k = min(self.top, tokens.logits.shape[-1])
        log_q = tokens.logits.topk(k).values.log_softmax(-1)
        return -(log_q.exp() * log_q).sum(-1) / math.log(k)


class Talr(LossTerm):
    """Weight by a power of the probability: w = max(p^(1 / tau), floor) (TALR, arXiv 2509.20758).

    tau is the median of -log p over the tokens of one pass of the model (of an even number of tokens the upper of the
    two in the middle), so a token of median loss has weight 1/e.
    """

    reads_pass: ClassVar[bool] = True
    floor: float = Field(0.01, ge=0, le=1, description="least weight of a token")

    def weights_of(self, tokens: Tokens) -> Tensor:
        assert tokens.all_log_p is not None  # since `reads_pass`
        tau = -tokens.all_log_p.median() if len(tokens.all_log_p) else tokens.log_p.new_ones(())
        return (tokens.log_p / tau.clamp_min(1e-6)).exp().clamp_min(self.floor)


class Prox(LossTerm):
    """Learn from the nearest distribution in which the label is at most e^rho times likelier than now.

    w = min(1, p (e^rho - 1) / (1 - p)). The distribution q that is nearest to the model's p in KL(q || p), with
    q(label) = min(1, e^rho p), keeps the proportions of all other tokens; the gradient of its cross-entropy is that of
    -log p(label) times (q - p) / (1 - p). Of our own, after iSDFT (arXiv 2609.24646).
    """

    rho: float = Field(1.0, gt=0, le=20, description="how many nats likelier a label may become at once")

    def token_weights(self, log_p: Tensor) -> Tensor:
        odds = log_p.exp() / (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return (odds * math.expm1(self.rho)).clamp_max(1.0)


class KnownToBase(AtLabels):
    """`Prift` in training: holds the base model."""

    def weights_of(self, tokens: Tokens) -> Tensor:
        base, labels = tokens.noted
        return self.term.weights_by(base.logits(tokens.rows).log_softmax(-1), labels[tokens.rows])


class Prift(LossTerm):
    """Weight by what the base model knew: w = q(label), or 1 where it knew nothing better (PriFT, arXiv 2606.09396).

    q: the base's probabilities. The weight is 1 if the tokens that the base finds at most as likely as the label have
    `mass` of the probability, or more: the label is then no surprise.
    """

    mass: float = Field(0.5, ge=0, le=1, description="probability of these tokens from which on the weight is 1")
    active: ClassVar[type[Any]] = KnownToBase

    def weights_by(self, log_q: Tensor, labels: Tensor) -> Tensor:
        """Return the weights of labelled tokens. log_q: (tokens, vocabulary), the base's log-probabilities."""
        own = log_q.gather(-1, labels[:, None])
        no_likelier = log_q.exp().masked_fill(log_q > own, 0).sum(-1)
        return own[:, 0].exp().masked_fill(no_likelier >= self.mass, 1.0)


class NotReplayed(LossTerm):
    """Learn nothing from replayed text by its labels: w = 0 there, else 1. With `kl` on it, it is only kept.

    `loss: [{kl: {tokens: replayed}}, not_replayed]` is cross-entropy on new text and KL to the base on old text.
    """

    def begin_pass(self, model: Any, batch: Batch) -> Tensor:
        """Return which of the labelled tokens are replayed."""
        return replayed_positions(batch)[batch["shift_labels"] != -100]

    def weights_of(self, tokens: Tokens) -> Tensor:
        return (~tokens.noted[tokens.rows]).to(tokens.log_p)

    @property
    def needs_replay(self) -> bool:
        return True


class DftAndKl(KlToBase):
    """`Asft` in training."""

    def token_weights(self, log_p: Tensor) -> Tensor:
        return log_p.exp()


class Asft(Kl):
    """DFT with a KL to the base (ASFT, arXiv 2509.23753): w = p, and weight * KL(base || trained) on learned tokens."""

    weight: float = Field(0.05, ge=0, description="factor of the KL")
    tokens: Literal["all"] = Field("all", description="all labelled tokens")

    active: ClassVar[type[Any]] = DftAndKl

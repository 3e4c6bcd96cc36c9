"""Penalties: distances from the base, in outputs (KL) or weights (L2-SP, EWC). Weights of tokens: `token_weights`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.common.section import later_field
from experiments.methods.active import ActiveTerm, TokenPenalty, Tokens
from experiments.methods.base import LossTerm, MethodContext
from experiments.methods.batches import Batch, micro_batch_fraction, replayed_positions, single_rows
from experiments.methods.reference import AtLabels, BaseLogits
from experiments.methods.weights import snapshot, trainable
from experiments.models.precision import Precision


class KlToBase(AtLabels):
    """`Kl` in training: holds the base model, and the factor of a budget."""

    def __init__(self, term: Kl, model: PreTrainedModel, context: MethodContext) -> None:
        super().__init__(term, model, context)
        self.dual = None if term.budget is None else Dual(term.budget)

    def begin_pass(self, model: Any, batch: Batch) -> tuple[BaseLogits, Tensor]:
        """Return the base's logits of the counted tokens, and which of the labelled tokens those are."""
        labelled = batch["shift_labels"] != -100
        counted = labelled & replayed_positions(batch) if self.term.tokens == "replayed" else labelled
        return self.base.read(model, batch, counted), counted[labelled]

    def penalty_of(self, tokens: Tokens) -> TokenPenalty | None:
        base, counted = tokens.noted
        rows = counted[tokens.rows].nonzero().squeeze(-1)
        if not len(rows):
            return None
        before = int(counted[: tokens.start].sum())
        logits = base.logits(slice(before, before + len(rows)))
        log_q = logits - logits.logsumexp(-1, keepdim=True)  # as for p: equal logits have a KL of exactly 0
        log_p = tokens.logits[rows] - tokens.log_sum[rows]
        value, slope = kl(log_q, log_p) if self.term.top is None else top_kl(log_q, log_p, self.term.top)
        weight = self.term.weight
        if self.dual is not None:
            self.dual.note(value, len(rows))
            weight = weight * self.dual.factor
        return TokenPenalty(weight * value, rows, slope.mul_(weight))

    def after_step(self, model: nn.Module, step: int) -> None:
        if self.dual is not None:
            self.dual.step(next(model.parameters()).device)

    def state(self) -> dict[str, Tensor]:
        dual = self.dual
        return {} if dual is None else {"dual": torch.tensor([dual.mean, dual.factor], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.dual is not None:
            self.dual.mean, self.dual.factor = state["dual"].tolist()


class Kl(LossTerm):
    """Penalise the KL to the base model: weight * sum over tokens of KL(base || trained) / labelled tokens of the step.

    The tokens are the labelled ones, or (`tokens: replayed`) only the replayed ones of them; the others then count as
    0. With `top` k, the KL of k + 1 outcomes: the base's k likeliest tokens, and all others together. It is a lower
    bound of the KL over the whole vocabulary. Computed in fp32.

    With `budget` kappa the weight is multiplied by a factor f that keeps the mean KL per token near kappa. After each
    step with counted tokens, D their mean KL: m <- .8 m + .2 D, f <- clip(f exp(.05 clip(m / kappa - 1, -1, 1)), .1,
    10). At the start m = kappa and f = 1. A checkpoint holds both.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    tokens: Literal["all", "replayed"] = Field("all", description="all labelled tokens, or the replayed ones of them")
    top: int | None = later_field(
        None, ge=1, description="likeliest tokens of the base that count one by one; default: all"
    )
    budget: float | None = later_field(None, gt=0, description="mean KL per token to keep, in nats; default: no budget")
    active: ClassVar[type[Any]] = KlToBase

    @property
    def needs_replay(self) -> bool:
        return self.tokens == "replayed"


class Dual:
    """Follow a mean KL per token, and raise or lower a factor so that it stays near a budget (`Kl`)."""

    def __init__(self, budget: float) -> None:
        self.budget = self.mean = budget
        self.factor, self.noted = 1.0, torch.zeros(2, dtype=torch.float64)

    def note(self, value: Tensor, tokens: int) -> None:
        """Add a sum over tokens of the step in progress."""
        self.noted = self.noted.to(value.device) + torch.stack([value.double(), value.new_tensor(tokens).double()])

    def step(self, device: torch.device) -> None:
        """Update mean and factor from what was noted, in all processes together. device: of their exchange."""
        noted, self.noted = self.noted.to(device), torch.zeros_like(self.noted)
        if dist.is_initialized():
            dist.all_reduce(noted)
        total, tokens = noted.tolist()
        if tokens:
            self.mean = 0.8 * self.mean + 0.2 * total / tokens
            excess = min(max(self.mean / self.budget - 1, -1.0), 1.0)
            self.factor = min(max(self.factor * math.exp(0.05 * excess), 0.1), 10.0)


def kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of KL(q || p) over tokens, in nats, and its gradient p - q by the logits of p.

    log_q, log_p: log-probabilities (tokens, vocabulary).
    """
    value = F.kl_div(log_p, log_q, log_target=True, reduction="sum")
    return value, log_p.exp() - log_q.exp()


def top_kl(log_q: Tensor, log_p: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the same for the k = `top` likeliest tokens of q and one rest: sum_k q ln(q / p) + Q ln(Q / P).

    Q and P are the rests' probabilities. The gradient is p - q at the k tokens, and p (1 - Q / P) at the others.
    """
    likeliest, at = log_q.topk(min(top, log_q.shape[-1]))
    p = log_p.exp()
    rests = [x.scatter(-1, at, 0.0).sum(-1, keepdim=True).clamp_min(1e-12) for x in (log_q.exp(), p)]
    rest_q, rest_p = rests
    q, log_own = likeliest.exp(), log_p.gather(-1, at)
    value = (q * (likeliest - log_own)).sum() + (rest_q * (rest_q / rest_p).log()).sum()
    slope = (p * (1 - rest_q / rest_p)).scatter_(-1, at, log_own.exp() - q)
    return value, slope


class FromStart(ActiveTerm):
    """`L2sp` in training: holds the start weights."""

    def __init__(self, term: L2sp | Ewc, model: PreTrainedModel, context: MethodContext) -> None:
        self.weight, self.start = term.weight, snapshot(model)

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        terms = [self.distance(name, p) for name, p in trainable(model).items()]
        return self.weight / 2 * torch.stack(terms).sum() * micro_batch_fraction(batch, total)

    def distance(self, name: str, p: Tensor) -> Tensor:
        """Return the squared distance of one trained weight from its start."""
        return (p - self.start[name]).square().sum()


class L2sp(LossTerm):
    """Penalise distance from the start: weight / 2 * |theta - theta_0|^2 over what trains (arXiv 1802.01483)."""

    weight: float = Field(0.01, ge=0, description="factor of the term")
    active: ClassVar[type[Any]] = FromStart
    kept_copies: ClassVar[int] = 1
    reads_weights: ClassVar[bool] = True


class FromStartByFisher(FromStart):
    """`Ewc` in training: holds the Fisher information too."""

    def __init__(self, term: Ewc, model: PreTrainedModel, context: MethodContext) -> None:
        super().__init__(term, model, context)
        self.fisher = fisher(model, list(single_rows(context.old(term.batches), model.device)), context.precision)

    def distance(self, name: str, p: Tensor) -> Tensor:
        return (self.fisher[name] * (p - self.start[name]).square()).sum()


class Ewc(LossTerm):
    """Penalise changes of weights that old text needs: weight / 2 * sum_i F_i (theta_i - theta_0i)^2.

    EWC (arXiv 1612.00796). F is the diagonal Fisher information per token: F_i = sum over rows of g_i^2 / labelled
    tokens, with g the gradient of a row's summed log-likelihood on old text at the start. If the base wrote that text,
    its tokens are drawn from the model itself: this then estimates the Fisher information proper, and half the
    quadratic form is the KL per token to second order.
    """

    weight: float = Field(1.0, ge=0, description="factor of the term")
    batches: int = Field(4, ge=1, le=10**5, description="batches of old text that F is estimated on")
    active: ClassVar[type[Any]] = FromStartByFisher
    kept_copies: ClassVar[int] = 2
    reads_weights: ClassVar[bool] = True
    reads_old: ClassVar[bool] = True


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

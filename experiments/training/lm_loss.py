"""The language-model loss of a training step: without the logits of a whole batch, and with weights for its tokens.

The model's own forward runs, but its output head and its loss function are replaced: the hidden states before the head
go to `chunked_nll.summed_nll`. Models that do more with their logits (they cap or scale them) compute them all.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from ctrl.numerics import widen
from experiments.methods import TokenPenalties, TokenPenalty, Tokens, TokenWeights
from experiments.models.head import inner, intercepted, why_whole
from experiments.training.chunked_nll import summed_nll

logger = logging.getLogger(__name__)


def lm_loss(
    model: Any,
    reads_logits: bool = False,
    token_weights: TokenWeights | None = None,
    reads_pass: bool = False,
    token_penalties: TokenPenalties | None = None,
) -> Callable[..., AbstractContextManager[ModelLoss]]:
    """Return a context for a model's training passes (`with context(): model(**only_label_logits(batch))`).

    Inside it the loss is the same as outside, with `token_weights` and `token_penalties` on its tokens (see
    `summed_nll`), and `logits` are empty: (batch, 0, vocabulary). They are computed for all labelled tokens if a method
    reads them, or if the model does more with them (`why_whole`, a warning once). Call it under the autocast of the
    training. The context takes what terms noted of the batch, for `Tokens.noted`. Raises ValueError for token weights
    in a model whose loss has none (`why_unweighted`).
    """
    if not reads_logits:
        reason = why_whole(model)
        if reason is None:
            return ChunkedLoss(model, token_weights, reads_pass, token_penalties).computed
        _warn(reason)
    if token_weights or token_penalties:
        return WholeLoss(model, token_weights, token_penalties=token_penalties).computed
    return ModelLoss().computed


class ModelLoss:
    """The model's own loss, unchanged.

    plain: the loss of the last pass without the weights of its tokens, detached; None if tokens have no weights.
    penalty: what penalties of tokens added to it, detached; None if there are none. tokens: the part of the loss that
    is a sum over tokens; a model may add to it, such as for the balance of its experts. None: not known.
    """

    plain: Tensor | None = None
    penalty: Tensor | None = None
    tokens: Tensor | None = None

    @contextmanager
    def computed(self, noted: Any = None) -> Iterator[ModelLoss]:
        yield self


class WholeLoss(ModelLoss):
    """The loss of a causal LM with a weight for each labelled token, from the logits of all of them.

    loss = (sum w (-log p(label)) + penalties of tokens) / num_items_in_batch, or / the batch's labelled tokens if that
    is not given. Raises ValueError for a model whose tokens cannot be weighted.
    """

    def __init__(
        self,
        model: Any,
        token_weights: TokenWeights | None = None,
        reads_pass: bool = False,
        token_penalties: TokenPenalties | None = None,
    ) -> None:
        self.model, self.token_weights, self.reads_pass = inner(model), token_weights, reads_pass
        self.token_penalties, self.head = token_penalties, self.model.get_output_embeddings()
        reason = why_unweighted(model) if token_weights or token_penalties else None
        if reason:
            raise ValueError(reason)

    @contextmanager
    def computed(self, noted: Any = None) -> Iterator[ModelLoss]:
        self.plain = self.penalty = self.tokens = None
        self.seen, self.noted = False, noted
        with intercepted(self.model, self.head, self._before_head, self._loss):
            yield self
        if (self.token_weights or self.token_penalties) and not self.seen:
            raise ValueError("the model's forward did not call its loss_function, so no token got its weight")

    def _before_head(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if shift_labels is None:
            raise ValueError("the loss needs shift_labels: call the model with only_label_logits(batch)")
        targets = shift_labels.to(logits.device)
        labelled = targets != -100
        count = labelled.sum() if num_items_in_batch is None else num_items_in_batch
        weigh = Weighing(self.token_weights, self.noted) if self.token_weights else None
        penalise = Penalising(self.token_penalties, self.noted) if self.token_penalties else None
        total = self._summed(logits, targets, labelled, weigh, penalise)
        count = torch.as_tensor(count, device=total.device)
        self.seen, self.plain = True, weigh.plain / count if weigh else None
        self.penalty = penalise.value / count if penalise else None
        loss = total / count
        self.tokens = loss.clone()  # models add to theirs in place
        return loss

    def _summed(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        weigh: TokenWeights | None,
        penalise: TokenPenalties | None,
    ) -> Tensor:
        """Sum w (-log p), and the penalties, over the labelled tokens. targets, labelled: (batch, kept)."""
        z = widen(logits[labelled])
        nll = F.cross_entropy(z, targets[labelled], reduction="none")
        log_p = -nll.detach()
        log_sum = z.detach().logsumexp(-1, keepdim=True)
        tokens = Tokens(log_p, z.detach(), log_sum, all_log_p=log_p)
        weights = weigh(tokens) if weigh else None
        total = nll.sum() if weights is None else weights @ nll
        for penalty in penalise(tokens) if penalise else []:
            linear = (penalty.slope * z[penalty.rows]).sum()  # which has the gradient of the penalty
            total = total + penalty.value + linear - linear.detach()
        return total


class ChunkedLoss(WholeLoss):
    """The same loss for a causal LM whose logits are head(hidden) and nothing else, without the logits of a batch.

    The head's input is noted and an empty one passed on; the noted states (batch, kept, hidden) at the labelled
    positions go to `summed_nll`. All else in the model's forward stays: ctrl's divergence, PEFT.
    """

    hidden: Tensor | None = None

    @contextmanager
    def computed(self, noted: Any = None) -> Iterator[ModelLoss]:
        with super().computed(noted):
            yield self
        self.hidden = None

    def _before_head(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (self.hidden,) = args
        return (self.hidden[:, :0],)

    def _summed(
        self,
        logits: Tensor,
        targets: Tensor,
        labelled: Tensor,
        weigh: TokenWeights | None,
        penalise: TokenPenalties | None,
    ) -> Tensor:
        assert self.hidden is not None  # the head ran before the loss: `why_whole` has seen it
        head, labels = self.head, targets[labelled]
        return summed_nll(self.hidden[labelled], head.weight, head.bias, labels, weigh, self.reads_pass, penalise)


class Weighing:
    """Call `token_weights`, and sum up the plain loss of all tokens on the way: plain = sum of -log p."""

    def __init__(self, token_weights: TokenWeights, noted: Any) -> None:
        self.token_weights, self.noted, self.plain = token_weights, noted, torch.zeros(())

    def __call__(self, tokens: Tokens) -> Tensor | None:
        log_p = tokens.log_p
        self.plain = self.plain.to(log_p) - log_p.sum()
        weights = self.token_weights(replace(tokens, noted=self.noted))
        if weights is not None and weights.shape != log_p.shape:
            raise ValueError(
                f"token_weights must return one weight for each token, shape {tuple(log_p.shape)}, but returned shape "
                f"{tuple(weights.shape)}"
            )
        return None if weights is None else weights.detach().to(log_p)


class Penalising:
    """Call `token_penalties`, and sum up the values of all penalties on the way."""

    def __init__(self, token_penalties: TokenPenalties, noted: Any) -> None:
        self.token_penalties, self.noted, self.value = token_penalties, noted, torch.zeros(())

    def __call__(self, tokens: Tokens) -> list[TokenPenalty]:
        found = self.token_penalties(replace(tokens, noted=self.noted))
        for penalty in found:
            self.value = self.value.to(penalty.value) + penalty.value
        return found


@functools.cache
def _warn(reason: str) -> None:
    logger.warning("the loss takes the logits of a whole batch, which needs more memory: %s", reason)


def why_unweighted(model: Any) -> str | None:
    """Return the reason why the tokens of a model's loss cannot be weighted, or None if they can."""
    if inner(model).loss_function is ForCausalLMLoss:
        return None
    return (
        "the loss of this model is not transformers' ForCausalLMLoss: leave out the loss term that weighs or penalises "
        "tokens"
    )

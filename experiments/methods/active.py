"""The parts of a method in training: each has hooks, which do nothing unless a class overrides them.

Loss terms and averages return these objects from `begin` (see `base`); each is whole from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from experiments.methods.batches import Batch


@dataclass(frozen=True)
class Tokens:
    """Some labelled tokens of a pass, as loss terms see them to weigh them; tensors are detached, fp32 or wider.

    log_p: (tokens,), log-probabilities of the labels. logits: (tokens, vocabulary); they are only lent, and change
    after the call. log_sum: (tokens, 1), their logsumexp. start: number of labelled tokens of the pass before these.
    all_log_p: log-probabilities of all labels of the pass, if a term has `reads_pass`. noted: what `begin_pass`
    returned for this pass.
    """

    log_p: Tensor
    logits: Tensor
    log_sum: Tensor
    start: int = 0
    all_log_p: Tensor | None = None
    noted: Any = None

    @property
    def rows(self) -> slice:
        """Where these tokens are among the labelled tokens of the pass."""
        return slice(self.start, self.start + len(self.log_p))


@dataclass(frozen=True)
class TokenPenalty:
    """A penalty on some of the tokens that `Tokens` holds. rows: their indices there; slope: (rows, vocabulary).

    value: its sum over the tokens. slope: its gradient by their logits.
    """

    value: Tensor
    rows: Tensor
    slope: Tensor


TokenWeights = Callable[[Tokens], Tensor | None]  # what `ActiveTerm.weights_of` is
TokenPenalties = Callable[[Tokens], list[TokenPenalty]]


class Active:
    """What loss terms and averages have in common in training."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Act after an optimiser step, before the model is evaluated. step: 1 after the first."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold next to the weights; of a sharded model, this process's shards."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, given as full tensors."""


class ActiveTerm(Active):
    """A loss term in training: it penalises, or weighs tokens, or both."""

    def begin_pass(self, model: Any, batch: Batch) -> Any:
        """Return what `weights_of` and `penalty_of` need of a batch: they get it as `noted` of their tokens.

        It is called before the model reads the batch. batch: as for `penalty`.
        """
        return None

    def penalty(self, model: Any, batch: Batch, outputs: Any, total: Tensor | int | None) -> Tensor | None:
        """Return a term to add to the loss, such that the terms of micro-batches add up to that of one large batch.

        batch: the arguments of the model's call, with `shift_labels` (batch, kept) and, if the data marks them,
        `replayed`. outputs: the model's; their logits are those of the kept positions if `reads_logits`, else empty.
        total: labelled tokens of the whole optimiser step (see `micro_batch_fraction`).
        """
        return None

    def token_weights(self, log_p: Tensor) -> Tensor | None:
        """Return the weight of each labelled token: the loss is then sum_i w_i (-log p_i) / labelled tokens.

        log_p: (tokens,), log-probabilities of the labels, detached. It holds a part of a batch's tokens at a time, so a
        weight may depend on its own token's log_p only. No gradient flows through the weights.
        """
        return None

    def weights_of(self, tokens: Tokens) -> Tensor | None:
        """Return the weights of tokens, like `token_weights`, by more than their log-probabilities."""
        return self.token_weights(tokens.log_p)

    def penalty_of(self, tokens: Tokens) -> TokenPenalty | None:
        """Return a penalty on the model's logits of labelled tokens, with its gradient; some of a batch's at a time.

        The loss gets its value / labelled tokens. It is cheaper than `penalty` with `reads_logits`, because the loss
        has computed these logits already, and never holds those of a whole batch.
        """
        return None


class ActiveAverage(Active):
    """An average in training. This base class averages nothing."""

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        """Give the model, inside the block, the weights that are evaluated and saved."""
        yield

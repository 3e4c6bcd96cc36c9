"""The three kinds of parts that a method is made of (what trains, loss terms, averages), and what they are given.

A part's fields are its keys in the YAML; its hooks do nothing unless it overrides them. Order of the calls: `prepare`
and `begin` on the base model's weights, then (in a resumed process) the checkpoint's weights and `load_state`, then
steps. A resumed process calls `begin` again, so what it notes must depend on its arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ctrl import ControlConfig
from experiments.common.section import Section
from experiments.methods.batches import Batch
from experiments.methods.saving import save_trained
from experiments.models.precision import Precision


@dataclass(frozen=True)
class Tokens:
    """Some labelled tokens of a pass, as loss terms see them to weigh them; tensors are detached, fp32 or wider.

    log_p: (tokens,), log-probabilities of the labels. logits: (tokens, vocabulary); they are only lent, and change
    after the call. log_sum: (tokens, 1), their logsumexp. start: number of labelled tokens of the pass before these.
    all_log_p: log-probabilities of all labels of the pass, if a term has `reads_pass`.
    """

    log_p: Tensor
    logits: Tensor
    log_sum: Tensor
    start: int = 0
    all_log_p: Tensor | None = None

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


TokenWeights = Callable[[Tokens], Tensor | None]  # what `LossTerm.weights_of` is
TokenPenalties = Callable[[Tokens], list[TokenPenalty]]


def no_old_text(count: int) -> list[Batch]:
    raise ValueError("this method needs old text, which the model is to keep: give MethodContext a function `old`")


@dataclass(frozen=True)
class MethodContext:
    """What a part may need next to the model.

    seed: of its random draws. precision: of the run's computations. old: returns that many batches of text which the
    model is to keep (from the replay sources, or written by the base model), the same ones at every call.
    """

    seed: int = 0
    precision: Precision = field(default_factory=lambda: Precision("fp32"))
    old: Callable[[int], list[Batch]] = no_old_text


class Tuning(Section):
    """What trains: `train: {name: its fields}`.

    in_control: whether a shorthand arm has these fields in its section `control`; else they are in `options`.
    adapts: whether what trains are adapters, whose factors are no weights of the base's kind. hooks_optimizer: whether
    it has a `hook` of its own, which needs whole weights and their own optimizer state in this process.
    """

    in_control: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    reads_old: ClassVar[bool] = False  # whether it needs `MethodContext.old`
    hooks_optimizer: ClassVar[bool] = False

    @classmethod
    def from_control(cls, control: ControlConfig) -> Tuning:
        """Build it for a shorthand arm that gives no fields but `control`."""
        return cls()

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        """Turn the base model into the model that trains, and mark its trainable parameters."""
        raise NotImplementedError

    def hook(self, optimizer: Optimizer) -> None:
        """Change what the optimizer does at each step, by its step hooks."""

    def save(self, model: PreTrainedModel, folder: Path) -> Path:
        """Write what was trained, so that `saving.load_onto` can read it."""
        return save_trained(model, folder)

    @property
    def layer_choice(self) -> int | Sequence[int] | None:
        """The decoder layers that it trains, as `ctrl.structure.place` takes them; None if it does not choose any."""
        return None


class Addition(Section):
    """Base of loss terms and averages, which are added to what trains."""

    reads_old: ClassVar[bool] = False  # whether it needs `MethodContext.old`

    def refusal(self, tuning: Tuning) -> str | None:
        """Return the reason why it cannot be combined with this tuning, or None if it can."""
        return None

    def begin(self, model: PreTrainedModel, context: MethodContext) -> None:
        """Note references (start weights, Fisher information) while the model still computes what the base does."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Act after an optimiser step, before the model is evaluated. step: 1 after the first."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold next to the weights; of a sharded model, this process's shards."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, given as full tensors."""


class LossTerm(Addition):
    """A term of the loss, or weights for its labelled tokens: an entry of `loss: [{name: its fields}]`.

    reads_weights: whether `penalty` is a function of all weights, which FSDP has in shards. reads_pass: whether a
    weight depends on the log-probabilities of all tokens of a pass, which then are computed first.
    """

    reads_weights: ClassVar[bool] = False
    reads_pass: ClassVar[bool] = False

    def begin_pass(self, model: Any, batch: Batch) -> None:
        """Note what `weights_of` needs of a batch, before the model reads it. batch: as for `penalty`."""

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

    @property
    def penalises_tokens(self) -> bool:
        """Whether the class has a `penalty_of` of its own."""
        return type(self).penalty_of is not LossTerm.penalty_of

    @property
    def weighs_tokens(self) -> bool:
        """Whether the class has a `token_weights` or `weights_of` of its own."""
        own = type(self)
        return own.token_weights is not LossTerm.token_weights or own.weights_of is not LossTerm.weights_of

    @property
    def reads_logits(self) -> bool:
        """Whether `penalty` reads the logits, which are then computed for all labelled tokens at once."""
        return False

    @property
    def needs_replay(self) -> bool:
        """Whether batches must hold replayed rows."""
        return False


class Average(Addition):
    """Other weights, made from those of several steps: `average: {name: its fields}`. This base class averages nothing.

    writes_weights: whether `after_step` sets trained weights, of which DeepSpeed has its own copies.
    """

    writes_weights: ClassVar[bool] = False

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        """Give the model, inside the block, the weights that are evaluated and saved."""
        yield

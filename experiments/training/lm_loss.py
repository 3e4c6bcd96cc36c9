"""The language-model loss of a training step: without the logits of a whole batch, and with weights for its tokens.

The model's own forward runs, but its output head and its loss function are replaced: the hidden states before the head
go to `chunked_nll.summed_nll`. Models that do more with their logits (they cap or scale them) compute them all.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from ctrl.numerics import widen
from experiments.methods import Tokens, TokenWeights
from experiments.methods.saving import is_peft
from experiments.training.chunked_nll import summed_nll

logger = logging.getLogger(__name__)
PROBE = 8  # tokens of the pass that `why_whole` examines
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def lm_loss(
    model: Any, reads_logits: bool = False, token_weights: TokenWeights | None = None, reads_pass: bool = False
) -> Callable[[], AbstractContextManager[ModelLoss]]:
    """Return a context for a model's training passes (`with context(): model(**only_label_logits(batch))`).

    Inside it the loss is the same as outside, with `token_weights` on its tokens (reads_pass: see `summed_nll`), and
    `logits` are empty: (batch, 0, vocabulary). They are computed for all labelled tokens if a method reads them, or if
    the model does more with them (`why_whole`, a warning once). Call it under the autocast of the training. Raises
    ValueError for token weights in a model whose loss has none (`why_unweighted`).
    """
    if not reads_logits:
        reason = why_whole(model)
        if reason is None:
            return ChunkedLoss(model, token_weights, reads_pass).computed
        _warn(reason)
    return (WholeLoss(model, token_weights) if token_weights else ModelLoss()).computed


def only_label_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for logits only where a label is predicted: the rest of a chat costs a vocabulary-sized product for nothing.

    The loss and its gradient are unchanged (tested); the labels are shifted here, since positions are left out. In a
    packed row the first token of a document has no label, so shifting crosses no border.
    """
    shifted = F.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    keep = (shifted != -100).any(0).nonzero().squeeze(-1)
    return {**inputs, "logits_to_keep": keep, "shift_labels": shifted[:, keep].contiguous()}


class ModelLoss:
    """The model's own loss, unchanged.

    plain: the loss of the last pass without the weights of its tokens, detached; None if tokens have no weights.
    """

    plain: Tensor | None = None

    @contextmanager
    def computed(self) -> Iterator[ModelLoss]:
        yield self


class WholeLoss(ModelLoss):
    """The loss of a causal LM with a weight for each labelled token, from the logits of all of them.

    loss = sum w (-log p(label)) / num_items_in_batch, or / the batch's labelled tokens if that is not given.
    Raises ValueError for a model whose tokens cannot be weighted.
    """

    def __init__(self, model: Any, token_weights: TokenWeights | None = None, reads_pass: bool = False) -> None:
        self.model, self.token_weights, self.reads_pass = inner(model), token_weights, reads_pass
        self.head = self.model.get_output_embeddings()
        reason = why_unweighted(model) if token_weights else None
        if reason:
            raise ValueError(reason)

    @contextmanager
    def computed(self) -> Iterator[ModelLoss]:
        self.plain = None
        with intercepted(self.model, self.head, self._before_head, self._loss):
            yield self
        if self.token_weights and self.plain is None:
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
        weigh = Weighing(self.token_weights) if self.token_weights else None
        total = self._summed(logits, targets, labelled, weigh)
        count = torch.as_tensor(count, device=total.device)
        self.plain = weigh.plain / count if weigh else None
        return total / count

    def _summed(self, logits: Tensor, targets: Tensor, labelled: Tensor, weigh: TokenWeights | None) -> Tensor:
        """Sum w (-log p) over the labelled tokens. targets, labelled: (batch, kept)."""
        z = widen(logits[labelled])
        nll = F.cross_entropy(z, targets[labelled], reduction="none")
        log_p = -nll.detach()
        log_sum = z.detach().logsumexp(-1, keepdim=True) if weigh else log_p
        weights = weigh(Tokens(log_p, z.detach(), log_sum, all_log_p=log_p)) if weigh else None
        return nll.sum() if weights is None else weights @ nll


class ChunkedLoss(WholeLoss):
    """The same loss for a causal LM whose logits are head(hidden) and nothing else, without the logits of a batch.

    The head's input is noted and an empty one passed on; the noted states (batch, kept, hidden) at the labelled
    positions go to `summed_nll`. All else in the model's forward stays: ctrl's divergence, PEFT.
    """

    hidden: Tensor | None = None

    @contextmanager
    def computed(self) -> Iterator[ModelLoss]:
        with super().computed():
            yield self
        self.hidden = None

    def _before_head(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (self.hidden,) = args
        return (self.hidden[:, :0],)

    def _summed(self, logits: Tensor, targets: Tensor, labelled: Tensor, weigh: TokenWeights | None) -> Tensor:
        assert self.hidden is not None  # the head ran before the loss: `why_whole` has seen it
        head, labels = self.head, targets[labelled]
        return summed_nll(self.hidden[labelled], head.weight, head.bias, labels, weigh, self.reads_pass)


class Weighing:
    """Call `token_weights`, and sum up the plain loss of all tokens on the way: plain = sum of -log p."""

    def __init__(self, token_weights: TokenWeights) -> None:
        self.token_weights, self.plain = token_weights, torch.zeros(())

    def __call__(self, tokens: Tokens) -> Tensor | None:
        log_p = tokens.log_p
        self.plain = self.plain.to(log_p) - log_p.sum()
        weights = self.token_weights(tokens)
        if weights is not None and weights.shape != log_p.shape:
            raise ValueError(
                f"token_weights must return one weight for each token, shape {tuple(log_p.shape)}, but returned shape "
                f"{tuple(weights.shape)}"
            )
        return None if weights is None else weights.detach().to(log_p)


@functools.cache
def _warn(reason: str) -> None:
    logger.warning("the loss takes the logits of a whole batch, which needs more memory: %s", reason)


def inner(model: Any) -> Any:
    """Return the causal LM itself, which PEFT may wrap."""
    return model.get_base_model() if is_peft(model) else model


@contextmanager
def intercepted(model: Any, head: nn.Module, before_head: Any, loss: Any) -> Iterator[None]:
    """Let `before_head` see and replace the head's input inside the block, and `loss` replace the model's loss."""
    own, hook = model.loss_function, head.register_forward_pre_hook(before_head)
    model.loss_function = loss
    try:
        yield
    finally:
        hook.remove()
        model.loss_function = own


def why_unweighted(model: Any) -> str | None:
    """Return the reason why the tokens of a model's loss cannot be weighted, or None if they can."""
    if inner(model).loss_function is ForCausalLMLoss:
        return None
    return "the loss of this model is not transformers' ForCausalLMLoss: leave out the loss term that weighs tokens"


def why_whole(model: Any) -> str | None:
    """Return the reason why a model needs all its logits at once (it caps or scales them ...), or None.

    One short pass shows what the model does with logits: they must be weight @ hidden + bias to the last bit.
    """
    causal = inner(model)
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its output head is a {type(head).__name__}, not a plain nn.Linear"
    if "forward" in vars(head) or any(getattr(head, name) for name in HOOKS):
        return "its output head has hooks"
    if causal.loss_function is not ForCausalLMLoss:
        return "its loss is not transformers' ForCausalLMLoss"
    hidden, logits, targets = _probed(model, causal, head)
    if len(hidden) != 1 or len(logits) != 1 or targets[0] is None or hidden[0].shape[:2] != targets[0].shape:
        return "its forward does not call the head and the loss once, with the positions asked for"
    if not torch.equal(logits[0], F.linear(hidden[0], head.weight, head.bias).to(logits[0].dtype)):
        return "its logits are not head(hidden): they are capped or scaled"
    return None


@torch.no_grad()
def _probed(model: Any, causal: Any, head: nn.Linear) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Run a short pass; return the arguments of the head and of the loss: hidden states, logits, shifted labels."""
    hidden: list[Tensor] = []
    given: list[Tensor] = []
    targets: list[Tensor | None] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden.extend(args)

    def loss(logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        given.append(logits)
        targets.append(kwargs.get("shift_labels"))
        return logits.new_zeros(())

    ids = torch.arange(PROBE, device=head.weight.device)[None]
    training = model.training
    model.eval()
    with intercepted(causal, head, note, loss):
        model(**only_label_logits({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}))
    model.train(training)
    return hidden, given, targets

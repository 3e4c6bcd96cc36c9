"""The language-model loss of a training step, without the logits of a whole batch.

The model's own forward runs, with its output head and its loss function set aside: the hidden states before the head
go to `chunked_nll.summed_nll`. Models that do more with their logits keep the loss they have.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from experiments.methods.saving import is_peft
from experiments.training.chunked_nll import summed_nll

logger = logging.getLogger(__name__)
PROBE = 8  # tokens of the pass that `why_whole` looks at
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def lm_loss(model: Any, reads_logits: bool = False) -> Callable[[], AbstractContextManager[None]]:
    """A context for a model's training passes (`with context(): model(**only_label_logits(batch))`).

    Inside it the loss is the same as outside; `logits` are empty, (batch, 0, vocabulary). Where somebody reads them, or
    the model does more with them (`why_whole`, told once as a warning), the context does nothing. Call it under the
    autocast that training has.
    """
    if reads_logits:
        return nullcontext
    reason = why_whole(model)
    if reason is None:
        return ChunkedLoss(model).computed
    _tell(reason)
    return nullcontext


def only_label_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for logits only where a label is predicted: the rest of a chat costs a vocabulary-sized product for nothing.

    The loss and its gradient are unchanged (tested); the labels are shifted here, since positions are left out. In a
    packed row the first token of a document has no label, so shifting crosses no border.
    """
    shifted = F.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    keep = (shifted != -100).any(0).nonzero().squeeze(-1)
    return {**inputs, "logits_to_keep": keep, "shift_labels": shifted[:, keep].contiguous()}


class ChunkedLoss:
    """The loss of a causal LM whose logits are head(hidden) and nothing else.

    The head's input is noted and an empty one passed on; the model's loss function then takes the noted states
    (batch, kept, hidden) at the labelled positions. All else in the model's forward stays: ctrl's divergence, PEFT.
    """

    def __init__(self, model: Any) -> None:
        self.model = inner(model)
        self.head = self.model.get_output_embeddings()
        self.hidden: Tensor | None = None

    @contextmanager
    def computed(self) -> Iterator[None]:
        with intercepted(self.model, self.head, self._note, self._loss):
            yield
        self.hidden = None

    def _note(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (self.hidden,) = args
        return (self.hidden[:, :0],)

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """sum of -log p(label) / num_items_in_batch, or / the batch's labelled tokens where that is not given."""
        if self.hidden is None or shift_labels is None:
            raise ValueError("the loss needs shift_labels: call the model with only_label_logits(batch)")
        targets = shift_labels.to(self.hidden.device)
        labelled = targets != -100
        total = summed_nll(self.hidden[labelled], self.head.weight, self.head.bias, targets[labelled])
        count = labelled.sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device)


@functools.cache
def _tell(reason: str) -> None:
    logger.warning("the loss takes the logits of a whole batch, which needs more memory: %s", reason)


def inner(model: Any) -> Any:
    """The causal LM itself, which PEFT may wrap."""
    return model.get_base_model() if is_peft(model) else model


@contextmanager
def intercepted(model: Any, head: nn.Module, before_head: Any, loss: Any) -> Iterator[None]:
    """Inside the block `before_head` sees and may replace the head's input, and `loss` stands for the model's loss."""
    own, hook = model.loss_function, head.register_forward_pre_hook(before_head)
    model.loss_function = loss
    try:
        yield
    finally:
        hook.remove()
        model.loss_function = own


def why_whole(model: Any) -> str | None:
    """Why a model needs its logits whole (its head is adapted, it caps or scales logits ...); None if it does not.

    What the model does with logits is seen from one short pass: they must be weight @ hidden + bias to the last bit.
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
    """What the head and the loss of a short pass were given: hidden states, logits, shifted labels."""
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

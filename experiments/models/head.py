"""The output head of a causal LM: at which positions it is asked, what it reads, and if logits are head(hidden)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

PROBE = 8  # tokens of the pass that `why_whole` examines
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def only_label_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for logits only where a label is predicted: the rest of a chat costs a vocabulary-sized product for nothing.

    The loss and its gradient are unchanged (tested); the labels are shifted here, since positions are left out. In a
    packed row the first token of a document has no label, so shifting crosses no border.
    """
    shifted = F.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    keep = (shifted != -100).any(0).nonzero().squeeze(-1)
    return {**inputs, "logits_to_keep": keep, "shift_labels": shifted[:, keep].contiguous()}


def inner(model: Any) -> Any:
    """Return the causal LM itself, which PEFT may wrap."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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

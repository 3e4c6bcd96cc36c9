"""Read the log-probabilities of replies that are given, in fp32, and the KL divergence between those of two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from experiments.models.generation import by_length
from experiments.models.reading import reading
from experiments.models.sharing import Progress, each, no_progress
from experiments.models.tokens import pad

BATCH = 8  # replies at a time: 8 x 48 x 49,152 fp32 logits are 75 MB
Use = Callable[[int, Tensor], Any]


def as_it_is(i: int, q: Tensor) -> Tensor:
    return q


@dataclass(frozen=True)
class Reply:
    """A prompt, and the base model's reply to it or a given continuation, as token ids."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


def reply_log_probs(
    model: PreTrainedModel,
    replies: Sequence[Reply],
    use: Use = as_it_is,
    progress: Progress = no_progress,
    batch: int = BATCH,
) -> Iterator[tuple[int, Any]]:
    """Yield (index of a reply, use(index, q)), q = log p(. | prompt, reply_<t) for its tokens t: (tokens, vocabulary).

    They are in fp32. Batches depend only on the replies, so the base model compared with itself gives exactly 0. The
    processes of a launch share them (`sharing.each`), so `use` should return something small there.
    """
    size = batch if reading(model).pads else 1
    batches = list(by_length([len(r.prompt) + len(r.reply) for r in replies], size))

    def read(rows: list[int]) -> list[Any]:
        return [use(i, q) for i, q in zip(rows, _log_probs(model, [replies[i] for i in rows]), strict=True)]

    for rows, found in zip(batches, each(batches, read, progress, len), strict=True):
        yield from zip(rows, found, strict=True)


@torch.no_grad()
def _log_probs(model: PreTrainedModel, batch: Sequence[Reply]) -> Iterator[Tensor]:
    texts = [one.prompt + one.reply for one in batch]
    mask = pad([[1] * len(text) for text in texts], 0, left=True).to(model.device)
    with fp32_head(model):
        logits = model(
            input_ids=pad(texts, 0, left=True).to(model.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=max(len(one.reply) for one in batch) + 1,
            use_cache=False,
        ).logits
    for row, one in zip(logits, batch, strict=True):
        own = row[-len(one.reply) - 1 : -1]  # the token before predicts each reply token
        yield torch.log_softmax(own.float(), dim=-1)


def kl_per_token(base: Tensor, tuned: Tensor) -> float:
    """Return KL(base || trained) = sum over the vocabulary of p_base (log p_base - log p_trained), in nats per token.

    base, tuned: (tokens, vocabulary), log-probabilities in fp32. Computed in chunks of 16 tokens.
    """
    parts = []
    for p, q in zip(base.split(16), tuned.split(16), strict=True):
        terms = p.exp() * (p - q)
        parts.append(terms.masked_fill(p.isneginf(), 0.0).sum())  # 0 log 0 = 0; a NaN of the tuned model stays one
    return float(torch.stack(parts).sum() / base.shape[0])


class _Own(torch.nn.Module):
    """A module with its own `forward`, whatever is called in place of it."""

    def __init__(self, module: torch.nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, hidden: Tensor) -> Tensor:
        return self.call(hidden)


@contextmanager
def fp32_head(model: PreTrainedModel) -> Iterator[None]:
    """Compute the logits in fp32 inside the block; the rest of the model computes as before.

    Rounded to bf16, logits are off by up to 0.06 each, which is more than a small KL. An adapter's parts are those of
    its head.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    own, before = _Own(head, head.forward), head.__dict__.get("forward")

    def forward(hidden: Tensor) -> Tensor:
        wide = {name: weight.float() for name, weight in own.named_parameters() if weight.is_floating_point()}
        with torch.autocast(hidden.device.type, enabled=False):
            return functional_call(own, wide, (hidden.float(),))

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before

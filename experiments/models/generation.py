"""Greedy replies, and the answer read out of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.models.prefix import Prefix, Prompts
from experiments.models.tokens import end_of_turn, prompt_ids

BATCH = 128
LEAVING = 0.25  # share of a batch; dropping rows copies the cache, as much as one more token does
Advance = Callable[[int], object]  # told how many items are done


def nothing(count: int) -> None:
    """Progress that nobody watches."""


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size`, longest first: little padding, and memory runs out at once if it does."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH,
    advance: Advance = nothing,
) -> list[list[int]]:
    """The most likely next token, again and again, up to and including the end of turn. One list per prompt."""
    end, prefix = end_of_turn(tokenizer), Prefix(model, prompts)
    replies: list[list[int]] = [[] for _ in prompts]
    for rows in by_length([len(prompt) for prompt in prompts], batch_size):
        batch = Prompts(model, [prompts[i] for i in rows], prefix)
        _reply(batch, [replies[i] for i in rows], max_new_tokens, end)
        advance(len(rows))
    return replies


def _reply(prompts: Prompts, replies: list[list[int]], most: int, end: int) -> None:
    """Append greedy tokens to each reply. Finished ones leave the batch once they are a quarter of it."""
    logits = prompts.logits
    while True:
        tokens = logits.argmax(dim=-1).tolist()
        for reply, token in zip(replies, tokens, strict=True):
            if not _ended(reply, end, most):
                reply.append(token)
        going = [row for row, reply in enumerate(replies) if not _ended(reply, end, most)]
        if not going:
            return
        if len(going) <= (1 - LEAVING) * len(replies):
            prompts.select(torch.tensor(going))
            replies = [replies[row] for row in going]
        last = torch.tensor([[reply[-1]] for reply in replies])
        logits = prompts.read(last, torch.ones_like(last))


def _ended(reply: Sequence[int], end: int, most: int) -> bool:
    return len(reply) >= most or reply[-1:] == [end]


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = BATCH,
    advance: Advance = nothing,
) -> list[str]:
    """The text of the model's greedy reply to each question."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    replies = generate_ids(model, tokenizer, encoded, max_new_tokens, batch_size, advance)
    return [str(tokenizer.decode(reply, skip_special_tokens=True)) for reply in replies]

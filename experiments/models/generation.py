"""Generation until the end of turn: of the most likely next token, or of tokens drawn at a temperature."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.models.key_values import in_parts
from experiments.models.prefix import Prefix, Prompts, shared_start
from experiments.models.reading import check_finite, own_replies, reading, windows
from experiments.models.sharing import Progress, each, in_order, no_progress
from experiments.models.tokens import end_of_turn, prompt_ids, reply_text

BATCH = 128  # prompts at a time: batches of one size give the same bits everywhere; fewer if memory has no room
LEAVING = 0.25  # share of a batch; dropping rows copies the cache, which costs as much as one more token


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: at a temperature, each prompt with random numbers of its own.

    seeds: one for each prompt. What is drawn for a prompt does not depend on the others, and two models draw with the
    same numbers.
    """

    temperature: float
    seeds: Sequence[str]


def reply_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a reply: the template's end of turn, and those at which the model's `generate` stops.

    The latter count if they are special tokens: a model without files for `generate` names any.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, list | tuple) else [own]
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    return list(dict.fromkeys([end_of_turn(tokenizer), *(one for one in own if one in special)]))


@contextlib.contextmanager
def stopping(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Let the model's own `generate` stop at `reply_ends` inside the block."""
    config: Any = model.generation_config
    before, config.eos_token_id = config.eos_token_id, reply_ends(model, tokenizer)
    try:
        yield
    finally:
        config.eos_token_id = before


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of `size` indices, longest first: little padding, and the first batch needs the most memory."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def of_one_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of at most `size` indices of equal lengths, longest first: they need no padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for _, group in itertools.groupby(order, key=lambda i: lengths[i]):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
    draw: Draw | None = None,
) -> list[list[int]]:
    """Return for each prompt the reply as token ids, with the end of turn if it was reached.

    The processes of a launch share the batches (`sharing.each`). draw: how tokens are drawn; None: greedy. Raises
    ConfigError if tokens cannot be drawn from this model.
    """
    ends, lengths = reply_ends(model, tokenizer), [len(prompt) for prompt in prompts]
    if not prompts:
        return []
    if not reading(model).caches:
        if draw:
            raise ConfigError(
                "temperature: replies can be drawn only from a model whose cache changes nothing, and here that of "
                f"{type(model).__name__} does or is missing: leave it at 0"
            )
        batches = list(of_one_length(lengths, batch_size if reading(model).pads else 1))

        def write(rows: list[int]) -> list[list[int]]:
            return own_replies(model, [prompts[i] for i in rows], max_new_tokens, ends)

    else:
        batches, longest = list(by_length(lengths, batch_size)), max(lengths) + max_new_tokens
        prefix = Prefix(model, shared_start(prompts) if _shares(model, longest) else ())

        def some(rows: Sequence[int]) -> list[list[int]]:
            batch, replies = Prompts(model, [prompts[i] for i in rows], prefix), [list[int]() for _ in rows]
            numbers = [random.Random(draw.seeds[i]) for i in rows] if draw else []
            _reply(batch, replies, max_new_tokens, ends, draw.temperature if draw else 0.0, numbers)
            return replies

        def write(rows: list[int]) -> list[list[int]]:
            return in_parts(some, rows, model, longest)

    return in_order(batches, each(batches, write, progress, len))


def _shares(model: PreTrainedModel, longest: int) -> bool:
    """Whether prompts may follow a shared start: padding after it would fill a window that slides."""
    return reading(model).shares and all(longest <= window for window in windows(model).values())


def _reply(
    prompts: Prompts,
    replies: list[list[int]],
    most: int,
    ends: Sequence[int],
    temperature: float,
    numbers: list[random.Random],
) -> None:
    """Append tokens to each reply. Finished replies leave the batch once they are a quarter of it.

    numbers: random numbers of each reply; empty: greedy.
    """
    logits = prompts.logits
    while True:
        check_finite(logits)
        tokens = (draw_tokens(logits, temperature, numbers) if numbers else logits.argmax(dim=-1)).tolist()
        for reply, token in zip(replies, tokens, strict=True):
            if not _ended(reply, ends, most):
                reply.append(token)
        going = [row for row, reply in enumerate(replies) if not _ended(reply, ends, most)]
        if not going:
            return
        if len(going) <= (1 - LEAVING) * len(replies):
            prompts.select(torch.tensor(going))
            replies, numbers = [replies[row] for row in going], [numbers[row] for row in going if numbers]
        last = torch.tensor([[reply[-1]] for reply in replies])
        logits = prompts.read(last, torch.ones_like(last))


def draw_tokens(logits: Tensor, temperature: float, numbers: Sequence[random.Random]) -> Tensor:
    """Draw a token from softmax(logits / temperature) for each row: (rows, vocabulary) -> (rows,).

    It is the first whose sum of probabilities is above the row's next random number in [0, 1).
    """
    sums = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.tensor([[one.random()] for one in numbers], dtype=sums.dtype, device=sums.device)
    return (sums <= drawn * sums[:, -1:]).sum(dim=-1).clamp(max=sums.shape[-1] - 1)


def _ended(reply: Sequence[int], ends: Sequence[int], most: int) -> bool:
    return len(reply) >= most or (bool(reply) and reply[-1] in ends)


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
    draw: Draw | None = None,
) -> list[str]:
    """Return the text of the reply to each question, without what the template writes around it. draw: as above."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    replies = generate_ids(model, tokenizer, encoded, max_new_tokens, batch_size, progress, draw)
    return [reply_text(tokenizer, reply) for reply in replies]

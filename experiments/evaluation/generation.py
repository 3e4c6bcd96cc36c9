"""Greedy replies, and the answer read out of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from experiments.data.items import NUMBER
from experiments.data.tokens import end_of_turn, pad, pad_id, prompt_ids

BATCH = 64
FIRST_ROUND = 12  # tokens
Advance = Callable[[int], object]  # told how many items are done


def nothing(count: int) -> None:
    """Progress that nobody watches."""


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size`, longest first: little padding, and memory runs out at once if it does."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = BATCH,
    advance: Advance = nothing,
) -> list[list[int]]:
    """The most likely next token, again and again, up to and including the end of turn. One list per prompt.

    Most replies are short, and a batch runs until its longest ends: those not ended after a few tokens go on in
    batches of their own.
    """
    end, fill = end_of_turn(tokenizer), pad_id(tokenizer)
    replies: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for most in (min(FIRST_ROUND, max_new_tokens), max_new_tokens):
        for rows in by_length([len(prompts[i]) + len(replies[i]) for i in going], batch_size):
            batch = [going[row] for row in rows]
            texts = [[*prompts[i], *replies[i]] for i in batch]
            for i, new in zip(batch, _generate(model, texts, most - len(replies[batch[0]]), end, fill), strict=True):
                replies[i] += new
            advance(sum(_ended(replies[i], end, max_new_tokens) for i in batch))
        going = [i for i in going if not _ended(replies[i], end, max_new_tokens)]
    return replies


def _ended(reply: Sequence[int], end: int, most: int) -> bool:
    return len(reply) >= most or end in reply


@torch.no_grad()
def _generate(model: PreTrainedModel, texts: list[list[int]], tokens: int, end: int, fill: int) -> list[list[int]]:
    """At most `tokens` greedy tokens behind each text, cut behind the end of turn."""
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=tokens,
        eos_token_id=end,
        pad_token_id=fill,
        use_cache=True,
    )
    ids = pad(texts, fill, left=True).to(model.device)
    mask = pad([[1] * len(text) for text in texts], 0, left=True).to(model.device)
    generate: Any = model.generate  # its stub says Tensor
    new = generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in new]


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


def parse_answer(reply: str, numeric: bool) -> str | None:
    """What a reply answers: its last number for a numeric task, else the whole text stripped. None if there is none.

    "12 - 5 = 1,007." answers "1007"; the minus of "12 - 5" or "12-5" is an operator, not a sign.
    """
    if not numeric:
        return reply.strip() or None
    numbers: list[str] = NUMBER.findall(reply.replace("\N{MINUS SIGN}", "-"))
    return numbers[-1].replace(",", "") if numbers else None

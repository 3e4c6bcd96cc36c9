"""Sample text from a model: chats of which it writes both turns, or plain text from the start of a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import short_digest
from experiments.common.progress import progress
from experiments.common.section import MAX_SEED, Section
from experiments.data.items import Item, Text
from experiments.models.generation import reply_ends
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.models.reading import as_asked, cut, reading
from experiments.models.tokens import (
    cut_in_thought,
    end_of_text,
    pad,
    pad_id,
    prompt_ids,
    reply_text,
    text_ids,
    user_opening,
)


class Sampling(Section):
    """Settings of sampling from a model."""

    number: int = Field(256, ge=1, le=10**7, description="texts or chats to sample")
    max_tokens: int = Field(256, ge=2, le=10**5, description="of each text, question or reply")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: the smallest set of tokens with this probability"
    )
    batch_size: int = Field(32, ge=1, le=10**5, description="texts sampled at a time")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the sampling; the same for every seed of a run")


def sample_chats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Sampling, precision: str
) -> Iterator[Item]:
    """Sample questions after the template's opening of a user turn, then a reply to each question that is not empty.

    A question that was cut off is used as it is: it is a prompt, and the reply is the model's own reply to it.
    """
    opening, ends = user_opening(tokenizer), reply_ends(model, tokenizer)
    with evaluating(model, Precision(precision)):
        turns = _sample(model, tokenizer, [opening] * settings.number, settings, ends, "questions")
        texts = [_text(tokenizer, turn) for turn in turns]
        questions = list(dict.fromkeys(text for text in texts if text))
        prompts = [prompt_ids(tokenizer, question) for question in questions]
        replies = _sample(model, tokenizer, prompts, settings, ends, "replies")
    for question, reply in zip(questions, replies, strict=True):
        if not cut_in_thought(tokenizer, reply) and (text := reply_text(tokenizer, reply).strip()):
            yield Item(question, text, ended=reply[-1] in ends)


def sample_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Sampling, precision: str
) -> Iterator[Text]:
    """Sample documents after the tokenizer's start of text, or if there is none after an end of text."""
    end = end_of_text(tokenizer)
    start = text_ids(tokenizer, "") or [end]
    with evaluating(model, Precision(precision)):
        documents = _sample(model, tokenizer, [start] * settings.number, settings, [end], "texts")
    for document in documents:
        if text := _text(tokenizer, document):
            yield Text(text, ended=document[-1] == end)


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    ends: Sequence[int],
    what: str,
) -> list[list[int]]:
    """Sample at most `max_tokens` tokens after each prompt, up to and including an end."""
    fill = pad_id(tokenizer)
    generation = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,  # generate's own default would cut at 50
        max_new_tokens=settings.max_tokens,
        eos_token_id=list(ends),
        pad_token_id=fill,
        use_cache=True,
    )
    generate: Any = model.generate  # its stub says Tensor
    rows: list[list[int]] = [[] for _ in prompts]
    torch.manual_seed(
        int(short_digest(f"{what} {settings.seed}")[:8], 16)
    )  # other draws for replies than for questions
    batches = _batches(model, prompts, settings.batch_size)
    with progress(f"sample {what}", len(prompts), "text") as task:
        for batch in batches:
            texts = [prompts[i] for i in batch]
            ids = pad(texts, fill, left=True).to(model.device)
            mask = pad([[1] * len(text) for text in texts], 0, left=True).to(model.device)
            with as_asked(model):
                found = generate(input_ids=ids, attention_mask=mask, generation_config=generation)
            new = found[:, ids.shape[1] :].tolist()
            for i, row in zip(batch, new, strict=True):
                rows[i] = cut(row, ends)
            task.advance(len(batch))
    return rows


def _batches(model: PreTrainedModel, prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return batches of indices, in order; each prompt alone if the model cannot skip padding."""
    size = size if reading(model).pads else 1
    return [list(range(start, min(start + size, len(prompts)))) for start in range(0, len(prompts), size)]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

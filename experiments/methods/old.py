"""Batches of text that a model is to keep, for methods that measure on it (EWC, CorDA)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.data.tokens import IGNORED, end_of_turn, pad, pad_id
from experiments.methods.base import Batch
from experiments.records import write_json

OWN_TOKENS = 64  # length of a text that the base writes


def replayed_batches(rows: Dataset[Any], collator: Callable[[list[Any]], Any], size: int, count: int) -> list[Batch]:
    """The first `count` batches of `size` rows that hold replayed tokens; only those tokens have labels.

    Fewer where the rows end before. Raises ValueError where no row is replayed.
    """
    found: list[Any] = []
    for i in range(len(rows)):  # type: ignore[arg-type]
        row = rows[i]
        if torch.as_tensor(row["replayed"]).any():
            found.append(row)
        if len(found) == size * count:
            break
    if not found:
        raise ValueError("no row of data.old was drawn: raise training.steps, or look at data.old")
    return [_only_replayed(collator(found[start : start + size])) for start in range(0, len(found), size)]


def _only_replayed(batch: dict[str, Tensor]) -> Batch:
    batch = dict(batch)
    replayed = batch.pop("replayed").bool()
    marks = replayed[:, None] if replayed.dim() == 1 else replayed
    return {**batch, "labels": batch["labels"].masked_fill(~marks, IGNORED)}


def own_text(
    base: Callable[[], PreTrainedModel], tokenizer: Any, count: int, seed: int, folder: Path
) -> list[list[int]]:
    """Token ids of `count` texts that the base model wrote, sampled at temperature 1 from its first token on.

    Kept in `folder` under their number, so that a resumed run reads the same text.
    """
    file = folder / f"own-text-{count}.json"
    if not file.is_file():
        model = base()
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end_of_turn(tokenizer)
        begin = torch.full((count, 1), start, device=model.device)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            texts = model.generate(  # type: ignore[operator]
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                top_k=0,
                max_new_tokens=OWN_TOKENS,
                pad_token_id=pad_id(tokenizer),
            )
        ends = {end_of_turn(tokenizer), tokenizer.eos_token_id}
        write_json(file, {"seed": seed, "texts": [_cut(text, ends) for text in texts.tolist()]})
    texts_written: list[list[int]] = json.loads(file.read_text())["texts"]
    return texts_written


def _cut(text: list[int], ends: set[int | None]) -> list[int]:
    """Up to the first end after the start, which may be the same token."""
    stop = next((i for i, token in enumerate(text[1:], 1) if token in ends), len(text) - 1)
    return text[: max(stop + 1, 2)]


def text_batches(texts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, size: int) -> list[Batch]:
    """Batches of `size` texts with a label on every token but the first."""
    batches: list[Batch] = []
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        batches.append(
            {
                "input_ids": pad(part, pad_id(tokenizer)),
                "attention_mask": pad([[1] * len(text) for text in part], 0),
                "labels": pad([[IGNORED, *text[1:]] for text in part], IGNORED),
            }
        )
    return batches

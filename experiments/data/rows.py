"""Rows of token ids to train on, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from experiments.data.items import Item
from experiments.data.tokens import IGNORED, end_of_turn, pad, pad_id, prompt_ids, reply_ids


class ChatDataset(Dataset[dict[str, list[int]]]):
    """Encoded items in an order fixed by the seed: read it in sequence, and every arm sees the same batches.

    An item is `input_ids` (prompt, answer, end of turn) and `labels`, which are -100 on the prompt: the loss is on the
    answer and the end of turn alone.
    """

    def __init__(self, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.items = list(items)
        random.Random(f"order {seed}").shuffle(self.items)
        end = end_of_turn(tokenizer)
        self.encoded = [_encode(item, tokenizer, end) for item in self.items]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.encoded[index]


def _encode(item: Item, tokenizer: PreTrainedTokenizerBase, end: int) -> dict[str, list[int]]:
    prompt = prompt_ids(tokenizer, item.question)
    answer = [*reply_ids(tokenizer, item.question, item.answer), end]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


class Collator:
    """Right-pads to the longest of the batch: input_ids, attention_mask and labels, each (batch, seq) int64."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = pad_id(tokenizer)

    def __call__(self, batch: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        return {
            "input_ids": pad([item["input_ids"] for item in batch], self.pad),
            "attention_mask": pad([[1] * len(item["input_ids"]) for item in batch], 0),
            "labels": pad([item["labels"] for item in batch], IGNORED),
        }

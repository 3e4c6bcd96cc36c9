"""Encode examples as rows of token ids, and collate batches: padded chats and texts (sft), packed documents (cpt)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.data.items import Example, Text
from experiments.models.tokens import IGNORED, answer_ids, end_of_text, pad, pad_id, prompt_ids, text_ids

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Tokens of a chat, or at most `length` tokens of a text. labels: IGNORED for tokens without loss."""

    ids: list[int]
    labels: list[int]
    replayed: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Encodes examples as pieces of at most `length` tokens.

    sft: the loss of a chat is on the answer and the end of turn, that of a text on all tokens. cpt: a chat is a text
    too, as the template writes it. A text longer than `length` becomes several pieces. A longer chat in sft is left
    out, since its answer would be cut. packed: whether a row of cpt may hold several documents.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, regime: Literal["sft", "cpt"], length: int, packed: bool = True
    ) -> None:
        self.tokenizer, self.regime, self.length = tokenizer, regime, length
        self.packs = packed and regime == "cpt"
        self.text_end = end_of_text(tokenizer)

    def pieces(self, example: Example, replayed: bool = False) -> list[Piece]:
        """Return the pieces of an example: none for a chat that is too long. Pieces of one token are left out."""
        if isinstance(example, Text):
            ids = [*text_ids(self.tokenizer, example.text), *[self.text_end] * example.ended]
            return self._cut(ids, replayed)
        prompt = prompt_ids(self.tokenizer, example.question)
        answer = answer_ids(self.tokenizer, example.question, example.reply, example.ended)
        if self.regime == "cpt":
            return self._cut(prompt + answer, replayed)
        fits = len(prompt) + len(answer) <= self.length
        return [Piece(prompt + answer, [IGNORED] * len(prompt) + answer, replayed)] if fits else []

    def _cut(self, ids: list[int], replayed: bool) -> list[Piece]:
        cuts = (ids[start : start + self.length] for start in range(0, len(ids), self.length))
        return [Piece(cut, cut, replayed) for cut in cuts if len(cut) > 1]


def padded_rows(pieces: Iterable[Piece]) -> Iterator[Row]:
    """Yield one row per piece: input_ids, labels and whether it is replayed."""
    for piece in pieces:
        yield {"input_ids": piece.ids, "labels": piece.labels, "replayed": piece.replayed}


def packed_rows(pieces: Iterable[Piece], length: int) -> Iterator[Row]:
    """Yield rows of exactly `length` tokens, filled with pieces one after the other; the rest starts the next row.

    position_ids start at 0 in each piece: by these transformers finds the documents of a row. The label of each first
    token is IGNORED, since the token before it belongs to another document.
    """
    row = _empty()
    for piece in pieces:
        start = 0
        while start < len(piece):
            stop = min(len(piece), start + length - len(row["input_ids"]))
            row["input_ids"] += piece.ids[start:stop]
            row["labels"] += [IGNORED, *piece.labels[start + 1 : stop]]
            row["position_ids"] += range(stop - start)
            row["replayed"] += [piece.replayed] * (stop - start)
            start = stop
            if len(row["input_ids"]) == length:
                yield row
                row = _empty()


def _empty() -> Row:
    return {"input_ids": [], "labels": [], "position_ids": [], "replayed": []}


class PaddingCollator:
    """Pads rows on the right to the longest of the batch.

    input_ids, attention_mask and labels are (batch, seq) int64, replayed is (batch,) bool.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = pad_id(tokenizer)

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "input_ids": pad([row["input_ids"] for row in batch], self.pad),
            "attention_mask": pad([[1] * len(row["input_ids"]) for row in batch], 0),
            "labels": pad([row["labels"] for row in batch], IGNORED),
            "replayed": torch.tensor([row["replayed"] for row in batch]),
        }


class PackedCollator:
    """Stacks packed rows: input_ids, labels and position_ids (batch, length) int64, replayed (batch, length) bool.

    There is no attention mask and no KV cache: with either, transformers would not look for documents in position_ids,
    and each token would attend to the documents before its own.
    """

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = ("input_ids", "labels", "position_ids", "replayed")
        tensors: dict[str, Tensor] = {name: torch.tensor([row[name] for row in batch]) for name in names}
        return {**tensors, "use_cache": False}

"""Encode examples as rows of token ids, and collate batches: padded chats and texts (sft), packed documents (cpt)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError, RefusedRow
from experiments.common.hashing import short_digest
from experiments.data.items import Chat, Example, Item, Text
from experiments.models.conversation import messages_of, tools_of, turn_of
from experiments.models.loss_mask import Labelled, Loss, has_markers, labelled
from experiments.models.tokens import IGNORED, answer_ids, end_of_text, pad, pad_id, prompt_ids, text_ids
from experiments.models.turns import marks, unwritten
from experiments.models.words import found, special_tokens

VERSION = 6  # of the tokens: raise it when a change of the code changes those of any example
Row = dict[str, Any]
Overlong = Literal["drop", "cut", "error"]


@dataclass(frozen=True)
class Piece:
    """Tokens of a chat, or at most `length` tokens of a text. labels: IGNORED for tokens without loss."""

    ids: list[int]
    labels: list[int]
    replayed: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Encoded:
    """The pieces of an example. left_out: number of its tokens that are in none, because a row is too short.

    refused: why it is passed over: the chat template cannot write it, or none of its replies is learned.
    """

    pieces: list[Piece]
    left_out: int = 0
    refused: str = ""


class Encoder:
    """Encodes examples as pieces of at most `length` tokens.

    sft: the loss of a chat is on the tokens that `loss` names, that of a text on all tokens. cpt: a chat is a text too,
    as the template writes it. A text longer than `length` becomes several pieces. overlong: what becomes of a longer
    chat in sft. drop: it is left out, since its answer would be cut. cut: its first `length` tokens are kept if any of
    them carries loss. error: ConfigError. packed: whether a row of cpt may hold several documents.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        regime: Literal["sft", "cpt"],
        length: int,
        packed: bool = True,
        loss: Loss = "all_turns",
        overlong: Overlong = "drop",
    ) -> None:
        self.tokenizer, self.regime, self.length = tokenizer, regime, length
        self.loss: Loss = loss if regime == "sft" else "all_tokens"
        self.overlong = overlong
        self.packs = packed and regime == "cpt"
        self.text_end = end_of_text(tokenizer)

    @functools.cached_property
    def key(self) -> str:
        """Digest of all that decides the tokens of an example."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend else repr(sorted(self.tokenizer.get_vocab().items()))
        template, special = str(self.tokenizer.chat_template), repr(self.tokenizer.special_tokens_map)
        settings = repr((VERSION, transformers.__version__, self.regime, self.length, self.loss, self.overlong))
        return short_digest(words, template, special, settings)

    def pieces(self, example: Example, replayed: bool = False) -> list[Piece]:
        """Return the pieces of an example: none for a chat that is too long. Pieces of one token are left out."""
        return self.encode(example, replayed).pieces

    def encode(self, example: Example, replayed: bool = False) -> Encoded:
        """Return the pieces of an example, and how many tokens were left out."""
        rows = self.labelled(example)
        if not rows:
            return Encoded([], refused="its last reply has weight 0, and data.loss is last_turn")
        if isinstance(example, Text) or self.regime == "cpt":
            return Encoded([piece for row in rows for piece in self._split(row, replayed)])
        fitting = [self._fitted(row, example) for row in rows]
        left_out = sum(len(row.ids) for row in rows) - sum(len(row.ids) for row in fitting)
        return Encoded([Piece(row.ids, row.labels, replayed) for row in fitting if row.ids], left_out)

    def encode_or_skip(self, example: Example) -> Encoded:
        """Encode an example of a source with skip_bad_rows: without pieces if the chat template refuses it."""
        try:
            return self.encode(example)
        except RefusedRow as error:
            return Encoded([], refused=str(error))

    def refusal(self, example: Example) -> str:
        """Return why the chat template refuses an example; empty if it does not."""
        try:
            self.labelled(example)
        except RefusedRow as error:
            return str(error)
        return ""

    def held(self, example: Example) -> tuple[set[str], set[str]]:
        """Return the special tokens in the words of an example that are read as text, and those read as tokens.

        In a chat those that begin or end texts and turns are text, in a document none.
        """
        if isinstance(example, Text):
            return set(), found(example.text, special_tokens(self.tokenizer))
        words = [example.messages, example.tools] if isinstance(example, Chat) else [example.question, example.reply]
        special = found(words, special_tokens(self.tokenizer))
        as_text = special & marks(self.tokenizer) if special else special
        return as_text, special - as_text

    def unwritten(self, example: Example) -> str:
        """Return the first words of a chat that the template leaves out or changes; nothing if it writes all."""
        if isinstance(example, Text):
            return ""
        last = example.messages[-1] if isinstance(example, Chat) else example.reply
        try:
            return unwritten(self.tokenizer, example.question, last, thoughts=self.loss == "all_tokens")
        except RefusedRow:
            return ""  # it is counted, or an error, where it is encoded

    def labelled(self, example: Example) -> list[Labelled]:
        """Return the tokens of an example with their labels, however long. A chat may need several rows."""
        if isinstance(example, Text):
            ids = text_ids(self.tokenizer, example.text)
            ids += [self.text_end] * (example.ended and ids[-1:] != [self.text_end])  # a rendered chat has its own
            return [Labelled(ids, ids)]
        if isinstance(example, Chat):
            return labelled(self.tokenizer, example.messages, example.tools, self.loss, example.context, example.place)
        if example.ended and has_markers(self.tokenizer) and self.loss != "all_tokens":
            turns = [*messages_of(example.question), turn_of(example.reply)]
            return labelled(self.tokenizer, turns, tools_of(example.question), self.loss, len(turns) - 1)
        prompt = prompt_ids(self.tokenizer, example.question)
        answer = answer_ids(self.tokenizer, example.question, example.reply, example.ended, prompt)
        before = prompt if self.loss == "all_tokens" else [IGNORED] * len(prompt)
        return [Labelled(prompt + answer, before + answer)]

    def _split(self, row: Labelled, replayed: bool) -> list[Piece]:
        starts = range(0, len(row.ids), self.length)
        cuts = [(row.ids[start : start + self.length], row.labels[start : start + self.length]) for start in starts]
        return [Piece(ids, labels, replayed) for ids, labels in cuts if len(ids) > 1]

    def _fitted(self, row: Labelled, example: Item) -> Labelled:
        """Return a row of a chat as it is, cut, or empty if it is left out."""
        if len(row.ids) <= self.length:
            return row
        if self.overlong == "error":
            where = getattr(example, "place", "") or f"the question {example.question[:60]!r}"
            raise ConfigError(
                f"{where} has {len(row.ids)} tokens with its answer, more than data.length={self.length}: raise it, or "
                "set data.overlong to drop or cut"
            )
        ids, labels = row.ids[: self.length], row.labels[: self.length]
        learned = self.overlong == "cut" and any(label != IGNORED for label in labels[1:])
        return Labelled(ids, labels) if learned else Labelled([], [])


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

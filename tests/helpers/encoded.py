"""One item as a row of tokens."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from experiments.data.encoding import Encoder, Row, padded_rows
from experiments.data.items import Item


def encode(item: Item, tokenizer: PreTrainedTokenizerBase) -> Row:
    (row,) = padded_rows(Encoder(tokenizer, "sft", 512).pieces(item))
    return row

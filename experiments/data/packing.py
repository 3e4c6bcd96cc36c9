"""Pack the conversations of a batch: several in a row, as few and as short rows as best-fit decreasing finds."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerBase

from experiments.models.tokens import IGNORED, pad_id


def best_fit(lengths: Sequence[int], space: int) -> list[list[int]]:
    """Put items into rows of `space` tokens: longest first, each into the fullest row that has room.

    Best-fit decreasing (arXiv 2404.10830). Returns the indices of the items of each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(free, (lengths[item], 0))
        left, row = free.pop(at) if at < len(free) else (space, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        bisect.insort(free, (left - lengths[item], row))
    return rows


def pack(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Put items into as few rows of at most `most` tokens as `best_fit` needs, and of these into the shortest."""
    longest, count = max(lengths), len(best_fit(lengths, most))
    shorter = range(longest, max(longest, most))
    fits = bisect.bisect_left(shorter, True, key=lambda space: len(best_fit(lengths, space)) <= count)
    return best_fit(lengths, longest + fits)


@dataclass(frozen=True)
class Packing:
    """Counts over batches. conversations: in `rows` rows, of `tokens` tokens without padding.

    computed: tokens of the rows with their padding. padded: of rows with one conversation each, padded to the longest.
    """

    conversations: int = 0
    rows: int = 0
    tokens: int = 0
    computed: int = 0
    padded: int = 0

    @property
    def saved(self) -> float:
        """Share of the padded rows' tokens that is not computed."""
        return 1 - self.computed / self.padded if self.padded else 0.0

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "saved": self.saved}


def packing(lengths: Iterable[int], batch: int, most: int) -> Packing:
    """Count what packing makes of conversations of these lengths, `batch` at a time, in rows of at most `most`."""
    total = [0] * 5
    given = list(lengths)
    for start in range(0, len(given), batch):
        own = given[start : start + batch]
        rows = pack(own, most)
        width = max(sum(own[i] for i in row) for row in rows)
        counts = len(own), len(rows), sum(own), len(rows) * width, len(own) * max(own)
        total = [one + more for one, more in zip(total, counts, strict=True)]
    return Packing(*total)


class PackingCollator:
    """Packs a batch of conversations: as many rows of at most `length` tokens as `pack` needs.

    input_ids, labels, position_ids and documents are (rows, longest) int64, replayed is (rows, longest) bool.
    position_ids start at 0 in each conversation: by these transformers keeps conversations apart, if no attention mask
    is given. The label of each first token is IGNORED, since the token before it belongs to another conversation.
    documents: 1 for the tokens of a row's first conversation, 2 for those of the next; 0 for padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.pad, self.length = pad_id(tokenizer), length
        self.joined = DataCollatorWithFlattening(return_seq_idx=True, separator_id=IGNORED)

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [[batch[i] for i in row] for row in pack([len(one["input_ids"]) for one in batch], self.length)]
        sizes = [sum(len(one["input_ids"]) for one in row) for row in rows]
        made = [self._row(row, max(sizes) - size) for row, size in zip(rows, sizes, strict=True)]
        return {**{name: torch.cat([row[name] for row in made]) for name in made[0]}, "use_cache": False}

    def _row(self, conversations: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Tensor]:
        """Join conversations to a row (1, tokens); its padding is one more document."""
        given = [{name: one[name] for name in ("input_ids", "labels")} for one in conversations]
        given += [{"input_ids": [self.pad] * padding, "labels": [IGNORED] * padding}] * (padding > 0)
        row = dict(self.joined(given, return_tensors="pt"))
        index = row.pop("seq_idx").long()
        replayed = torch.tensor([*(bool(one["replayed"]) for one in conversations), False])
        numbers = torch.tensor([*range(1, len(conversations) + 1), 0])
        return {**row, "documents": numbers[index], "replayed": replayed[index]}

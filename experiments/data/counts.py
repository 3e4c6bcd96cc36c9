"""Count what examples become: how many are too long for a row, which tokens are learned, which are no text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments.data.encoding import Encoded, Encoder
from experiments.data.items import Example
from experiments.models.tokens import IGNORED

MOST = 1000  # examples that are counted of each source before a run


@dataclass(frozen=True)
class Counts:
    """Counts over the first examples of a source.

    too_long: examples of which tokens are left out. tokens: of all rows. learned: those with loss. left_out: tokens of
    the examples that are in no row. whole: whether the source has no other examples. as_text, as_tokens: special tokens
    in the words of examples that are read as text, or as tokens, with the number of examples. refused: why the chat
    template refuses examples that are passed over.
    """

    examples: int
    too_long: int
    tokens: int
    learned: int
    left_out: int
    whole: bool
    as_text: Mapping[str, int]
    as_tokens: Mapping[str, int]
    refused: tuple[str, ...] = ()

    @property
    def share_left_out(self) -> float:
        """Share of the examples' tokens that are in no row."""
        return self.left_out / max(1, self.left_out + self.tokens)


def count(
    examples: Iterable[Example], encoder: Encoder, most: int = MOST, known: Iterable[Encoded] | None = None
) -> Counts:
    """Encode at most `most` examples and count. Raises ConfigError as the encoder does.

    known: the same examples encoded, from a cache.
    """
    rest = iter(examples)
    first = list(itertools.islice(rest, most))
    encoded = list(map(encoder.encode, first) if known is None else itertools.islice(known, len(first)))
    held = [encoder.held(example) for example in first]
    pieces = [piece for one in encoded for piece in one.pieces]
    return Counts(
        examples=len(encoded),
        too_long=sum(one.left_out > 0 for one in encoded),
        tokens=sum(map(len, pieces)),
        learned=sum(label != IGNORED for piece in pieces for label in piece.labels),
        left_out=sum(one.left_out for one in encoded),
        whole=next(rest, None) is None,
        as_text=Counter(token for text, _ in held for token in text),
        as_tokens=Counter(token for _, tokens in held for token in tokens),
        refused=tuple(one.refused for one in encoded if one.refused),
    )


def notes(label: str, counts: Counts, encoder: Encoder) -> list[str]:
    """Say which examples the template refuses, which are too long, and which have special tokens in their words."""
    lines = [*refused(counts), *special(counts)]
    return [*too_long(label, counts, encoder), *(f"source {label}: {line}" for line in lines)]


def refused(counts: Counts) -> list[str]:
    """Say how many examples the chat template refuses, and why the first; nothing without any."""
    if not counts.refused:
        return []
    of = f"{counts.examples:,}" if counts.whole else f"the first {counts.examples:,}"
    return [f"{len(counts.refused):,} of {of} conversations are passed over ({counts.refused[0]})"]


def special(counts: Counts) -> list[str]:
    """Say which special tokens the words of the examples hold, and how they are read."""
    of = f"{counts.examples:,} examples" if counts.whole else f"the first {counts.examples:,} examples"
    held = {"text": counts.as_text, "one token": counts.as_tokens}
    return [
        f"{number:,} of {of} have the special token {token} in their words, where it is read as {read}"
        for read, found in held.items()
        for token, number in sorted(found.items())
    ]


def too_long(label: str, counts: Counts, encoder: Encoder) -> list[str]:
    """Say what is left out because rows are too short; nothing if all fits."""
    if not counts.too_long:
        return []
    of = f"{counts.examples:,} chats" if counts.whole else f"the first {counts.examples:,} chats"
    what = "are cut to it, or left out if no reply begins before" if encoder.overlong == "cut" else "are left out"
    return [
        f"source {label}: {counts.too_long:,} of {of} are longer than data.length={encoder.length} and {what} "
        f"({counts.share_left_out:.1%} of all tokens)"
    ]

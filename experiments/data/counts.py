"""Count what examples become: how many are too long for a row, and which tokens are learned."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.data.encoding import Encoded, Encoder
from experiments.models.tokens import IGNORED

MOST = 1000  # examples that are counted of each source before a run


@dataclass(frozen=True)
class Counts:
    """Counts over the first examples of a source.

    too_long: examples of which tokens are left out. tokens: of all rows. learned: those with loss. left_out: tokens of
    the examples that are in no row. whole: whether the source has no other examples. refused: why the chat template
    refuses examples that are passed over.
    """

    examples: int
    too_long: int
    tokens: int
    learned: int
    left_out: int
    whole: bool
    refused: tuple[str, ...] = ()

    @property
    def share_left_out(self) -> float:
        """Share of the examples' tokens that are in no row."""
        return self.left_out / max(1, self.left_out + self.tokens)


def count(examples: Iterable[Encoded], most: int = MOST) -> Counts:
    """Count at most `most` encoded examples. Raises ConfigError as the encoder does."""
    rest = iter(examples)
    encoded = list(itertools.islice(rest, most))
    pieces = [piece for one in encoded for piece in one.pieces]
    return Counts(
        examples=len(encoded),
        too_long=sum(one.left_out > 0 for one in encoded),
        tokens=sum(map(len, pieces)),
        learned=sum(label != IGNORED for piece in pieces for label in piece.labels),
        left_out=sum(one.left_out for one in encoded),
        whole=next(rest, None) is None,
        refused=tuple(one.refused for one in encoded if one.refused),
    )


def refused(label: str, counts: Counts) -> list[str]:
    """Say how many examples the chat template refuses, and why the first; nothing without any."""
    if not counts.refused:
        return []
    of = f"{counts.examples:,}" if counts.whole else f"the first {counts.examples:,}"
    return [f"source {label}: {len(counts.refused):,} of {of} conversations are passed over ({counts.refused[0]})"]


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

"""Several sources as one stream of pieces with given shares of tokens, and its rows by number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from experiments.data.rows import Encoder, Piece, Row, packed_rows, padded_rows
from experiments.data.source import Source
from experiments.section import ConfigError

WINDOW = 256  # rows kept: a batch that is read again costs nothing
PATIENCE = 1000  # examples in a row without a usable piece before the source counts as unusable


@dataclass(frozen=True)
class Part:
    """A source and its share of all tokens. replayed: it is part of `old`."""

    source: Source
    share: float
    replayed: bool


@dataclass
class Drawn:
    """What a stream has taken from one source so far. epochs: times it was begun; left_out: chats that are too long."""

    tokens: int = 0
    pieces: int = 0
    examples: int = 0
    epochs: int = 0
    left_out: int = 0


class Mixture:
    """An endless stream of pieces. The next one comes from the source that lacks most: share x drawn - own tokens.

    So no source is ever ahead of its share by a whole piece. Each source's pieces and their order depend on the source
    and the seed alone; the shares decide only how they are interleaved.
    """

    def __init__(self, parts: Sequence[Part], encoder: Encoder, seed: int, taken: frozenset[str]) -> None:
        self.parts, self.encoder = tuple(part for part in parts if part.share > 0), encoder
        self.seed, self.taken = seed, taken
        self.drawn = [Drawn() for _ in self.parts]

    def __iter__(self) -> Iterator[Piece]:
        """From the start, with fresh counts."""
        self.drawn = [Drawn() for _ in self.parts]
        streams = [self._pieces(part, drawn) for part, drawn in zip(self.parts, self.drawn, strict=True)]
        while True:
            index = most_lacking([part.share for part in self.parts], [drawn.tokens for drawn in self.drawn])
            piece = next(streams[index])
            self.drawn[index].tokens += len(piece)
            self.drawn[index].pieces += 1
            yield piece

    def _pieces(self, part: Part, drawn: Drawn) -> Iterator[Piece]:
        unusable = 0
        for epoch, example in part.source.stream(self.seed, self.taken):
            drawn.epochs = epoch + 1
            pieces = self.encoder.pieces(example, part.replayed)
            drawn.examples += bool(pieces)
            drawn.left_out += not pieces
            unusable = 0 if pieces else unusable + 1
            if unusable >= PATIENCE:
                raise ConfigError(
                    f"source {part.source.label}: {PATIENCE} examples in a row are longer than data.length="
                    f"{self.encoder.length} tokens: raise data.length"
                )
            yield from pieces


def most_lacking(shares: Sequence[float], tokens: Sequence[int]) -> int:
    """Index of the largest deficit, share x all tokens - own tokens; the first of several."""
    total = sum(tokens)
    return max(range(len(shares)), key=lambda i: shares[i] * total - tokens[i])


class Rows(Dataset[Row]):
    """The first `count` rows of a mixture. Row i is the same whatever was read before.

    Rows are made as they are read, and the last few are kept: reading forward is free, one behind the window starts the
    stream again, as a resumed run does to reach its first row.
    """

    def __init__(self, mixture: Mixture, count: int) -> None:
        self.mixture, self.count = mixture, count
        self.made = 0
        self.window: deque[Row] = deque(maxlen=WINDOW)
        self.stream: Iterator[Row] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.count:
            raise IndexError(f"row {index} of {self.count}")
        if self.stream is None or index < self.made - len(self.window):
            self.stream, self.made = self._begin(), 0
            self.window.clear()
        while self.made <= index:
            self.window.append(next(self.stream))
            self.made += 1
        return self.window[index - self.made]

    def _begin(self) -> Iterator[Row]:
        encoder = self.mixture.encoder
        return packed_rows(self.mixture, encoder.length) if encoder.regime == "cpt" else padded_rows(self.mixture)

    def drawn(self) -> list[Drawn]:
        """What all rows together took from each source; reads to the last row if that has not been done."""
        if self.count and self.made < self.count:
            self[self.count - 1]
        return self.mixture.drawn

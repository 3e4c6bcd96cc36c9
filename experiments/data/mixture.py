"""Mix several sources to one stream of pieces with given shares of tokens, and read its rows by index."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from experiments.common.errors import ConfigError
from experiments.data.encoding import Encoded, Encoder, Piece, Row, packed_rows, padded_rows
from experiments.data.source import Source
from experiments.data.tokenised import encoded_epoch

WINDOW = 256  # rows kept: a batch that is read again costs nothing
PATIENCE = 1000  # examples in a row without a usable piece, after which the source counts as unusable


@dataclass(frozen=True)
class Part:
    """A source and its share of the tokens of a stage. replayed: it is not the task that the stage teaches."""

    source: Source
    share: float
    replayed: bool
    stage: int = 0


@dataclass
class Drawn:
    """Counts of what a stage has drawn from one source.

    epochs: times the source was started. repeats: examples that an earlier epoch had drawn already. too_long: chats
    that were left out because they are longer than a row. shortened: chats of which only a part was left out.
    tokens_left_out: of both. refused: chats that were passed over (`Encoded`).
    """

    tokens: int = 0
    pieces: int = 0
    examples: int = 0
    epochs: int = 0
    repeats: int = 0
    too_long: int = 0
    shortened: int = 0
    tokens_left_out: int = 0
    refused: int = 0


class Mixture:
    """Endless pieces for each stage. The next one comes from the source with the largest share x all - own tokens.

    So no source is ever ahead of its share of a stage by a whole piece. Each source's pieces and their order depend
    only on the source and the seed; the shares only decide how sources are interleaved. If several stages share a
    source, each continues where the one before stopped.
    """

    def __init__(self, parts: Sequence[Part], encoder: Encoder, seed: int, held_out_ids: frozenset[str]) -> None:
        self.parts, self.encoder = tuple(part for part in parts if part.share > 0), encoder
        self.seed, self.held_out_ids = seed, held_out_ids
        self.begin()

    def begin(self) -> None:
        """Start again, with counts of 0."""
        self.drawn = [Drawn() for _ in self.parts]
        self.open: dict[tuple[int, bool], Pieces] = {}

    def check(self) -> None:
        """Read the first piece of each source, then start again. Raises ConfigError if no example of one fits a row."""
        for part in self.parts:
            self._pieces(part).take(Drawn())
        self.begin()

    def stage(self, number: int) -> Iterator[Piece]:
        """Yield the pieces of one stage, without end."""
        own = [i for i, part in enumerate(self.parts) if part.stage == number]
        shares = [self.parts[i].share for i in own]
        while True:
            index = own[most_lacking(shares, [self.drawn[i].tokens for i in own])]
            yield self._pieces(self.parts[index]).take(self.drawn[index])

    def _pieces(self, part: Part) -> Pieces:
        key = (id(part.source), part.replayed)
        if key not in self.open:
            self.open[key] = Pieces(part, self.encoder, self.seed, self.held_out_ids)
        return self.open[key]


class Pieces:
    """The pieces of one source, in its own order and without end."""

    def __init__(self, part: Part, encoder: Encoder, seed: int, held_out_ids: frozenset[str]) -> None:
        self.part, self.encoder = part, encoder
        self.encoded = part.source.without_end(
            lambda number: encoded_epoch(part.source, number, seed, held_out_ids, encoder), len(held_out_ids)
        )
        self.waiting: deque[Piece] = deque()
        self.epochs = 0

    def take(self, drawn: Drawn) -> Piece:
        """Return the next piece and count it in `drawn`. Raises ConfigError if no example fits in a row."""
        unusable = 0
        while not self.waiting:
            epoch, encoded = next(self.encoded)
            self.epochs = epoch + 1
            self.waiting.extend(replace(piece, replayed=self.part.replayed) for piece in encoded.pieces)
            drawn.tokens_left_out += encoded.left_out
            drawn.shortened += bool(encoded.left_out and encoded.pieces)
            drawn.examples += bool(self.waiting)
            drawn.repeats += bool(self.waiting and epoch)
            drawn.refused += bool(encoded.refused)
            drawn.too_long += bool(encoded.left_out and not encoded.pieces)
            unusable += not self.waiting
            if unusable >= PATIENCE:
                raise ConfigError(f"source {self.part.source.label}: {PATIENCE} examples in a row {self._why(encoded)}")
        piece = self.waiting.popleft()
        drawn.tokens += len(piece)
        drawn.pieces += 1
        drawn.epochs = self.epochs
        return piece

    def _why(self, encoded: Encoded) -> str:
        if encoded.refused:
            return f"cannot be used, the last because {encoded.refused}"
        return f"are longer than data.length={self.encoder.length} tokens: raise data.length"


def most_lacking(shares: Sequence[float], tokens: Sequence[int]) -> int:
    """Return the index of the largest deficit, share x all tokens - own tokens; the first of equal ones."""
    total = sum(tokens)
    return max(range(len(shares)), key=lambda i: shares[i] * total - tokens[i])


class Rows(Dataset[Row]):
    """The rows of a mixture, one stage after the other. Row i does not depend on the rows read before.

    stages: number of rows of each stage. A row belongs to one stage, so packing drops the rest at the end of a stage.
    Rows are made when they are read, and the last WINDOW are kept. Reading a row before these starts the stream again,
    as a resumed run does to reach its first row.
    """

    def __init__(self, mixture: Mixture, *stages: int) -> None:
        self.mixture, self.stages, self.count = mixture, stages, sum(stages)
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
        self.mixture.begin()
        for number, count in enumerate(self.stages):
            yield from itertools.islice(self._stage(number), count)

    def _stage(self, number: int) -> Iterator[Row]:
        encoder, pieces = self.mixture.encoder, self.mixture.stage(number)
        return packed_rows(pieces, encoder.length) if encoder.packs else padded_rows(pieces)

    def drawn(self) -> list[Drawn]:
        """Return the counts of all rows for each part. Reads to the last row if that has not been done."""
        if self.count and self.made < self.count:
            self[self.count - 1]
        return self.mixture.drawn

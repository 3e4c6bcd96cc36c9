"""Count what examples become: how many are too long for a row or refused, and which of their tokens are no text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments.common.progress import progress
from experiments.data.encoding import Encoder
from experiments.data.items import Example
from experiments.data.token_cache import Size

MOST = 1000  # examples of each source whose words are looked at before a run
SHOWN = 60  # letters of words that are not learned
NEW = 20_000  # examples of a table whose length is looked at, besides those in the cache: half a minute on two cores


@dataclass
class Lengths:
    """How long the first examples of a source are.

    too_long: examples of which tokens are left out. tokens: of all rows. left_out: tokens of the examples that are in
    no row. refused: examples that are passed over (`Encoded`). reason: why the first is. whole:
    whether the source has no other examples.
    """

    examples: int = 0
    too_long: int = 0
    tokens: int = 0
    left_out: int = 0
    refused: int = 0
    reason: str = ""
    whole: bool = True

    def add(self, one: Size) -> None:
        self.examples += 1
        self.too_long += one.left_out > 0
        self.tokens += one.tokens
        self.left_out += one.left_out
        self.refused += bool(one.refused)
        self.reason = self.reason or one.refused

    @property
    def share_left_out(self) -> float:
        """Share of the examples' tokens that are in no row."""
        return self.left_out / max(1, self.left_out + self.tokens)


@dataclass(frozen=True)
class Special:
    """Special tokens in the words of the first examples, read as text or as tokens, with the number of examples.

    unwritten: words of examples that the chat template leaves out or changes.
    """

    examples: int
    whole: bool
    as_text: Mapping[str, int]
    as_tokens: Mapping[str, int]
    unwritten: tuple[str, ...] = ()


def lengths(sizes: Iterable[Size], rows: int, most: int = NEW) -> Lengths:
    """Add up the sizes of what a run reads: of examples until they give `rows` pieces.

    most: examples that are not in the cache; none is looked at after these. Raises ConfigError as the encoder does.
    """
    found, pieces, made = Lengths(), 0, 0
    with progress("count tokens", rows, "row") as task:
        for one in sizes:
            if pieces >= rows or made >= most:
                found.whole = False
                break
            found.add(one)
            pieces += one.pieces
            made += one.new
            task.advance(one.pieces)
    return found


def special(examples: Iterable[Example], encoder: Encoder, most: int = MOST) -> Special:
    """Look for special tokens in the words of at most `most` examples."""
    rest = iter(examples)
    first = list(itertools.islice(rest, most))
    held = [encoder.held(example) for example in first]
    as_text, as_tokens = (Counter(token for one in held for token in one[side]) for side in (0, 1))
    lost = tuple(filter(None, map(encoder.unwritten, first)))
    return Special(len(held), next(rest, None) is None, as_text, as_tokens, lost)


def refused(found: Lengths) -> list[str]:
    """Say how many examples the chat template refuses, and why the first; nothing without any."""
    if not found.refused:
        return []
    return [f"{found.refused:,} of {_of(found)} conversations are passed over ({found.reason})"]


def held(found: Special) -> list[str]:
    """Say which special tokens the words of the examples hold, how they are read, and which words are not learned."""
    read_as = {"text": found.as_text, "one token": found.as_tokens}
    lost = [
        f"{len(found.unwritten):,} of {_of(found)} examples have words that the chat template leaves out or changes, "
        f"so they are not learned as they are: {one[:SHOWN]!r}"
        for one in found.unwritten[:1]
    ]
    return lost + [
        f"{number:,} of {_of(found)} examples have the special token {token} in their words, where it is read as {read}"
        for read, tokens in read_as.items()
        for token, number in sorted(tokens.items())
    ]


def too_long(found: Lengths, encoder: Encoder) -> list[str]:
    """Say what is left out because rows are too short; nothing if all fits."""
    if not found.too_long:
        return []
    what = "are cut to it, or left out if no reply begins before" if encoder.overlong == "cut" else "are left out"
    return [
        f"{found.too_long:,} of {_of(found)} chats are longer than data.length={encoder.length} and {what} "
        f"({found.share_left_out:.1%} of all tokens)"
    ]


def _of(found: Lengths | Special) -> str:
    return f"{found.examples:,}" if found.whole else f"the first {found.examples:,}"

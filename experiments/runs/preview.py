"""Show what a config trains on, without a model: the shape of each source, and one example with its loss mask."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from experiments.common.printable import without_codes
from experiments.config import ExperimentConfig
from experiments.data.base_text import BaseText
from experiments.data.counts import MOST, Lengths, held, refused, special
from experiments.data.encoding import Encoded, Encoder, Overlong
from experiments.data.items import Example, Text
from experiments.data.source import Source
from experiments.data.stages import Earlier
from experiments.data.token_cache import size_of
from experiments.data.tokenised import encode_of
from experiments.models.loss_mask import Labelled
from experiments.models.tokens import IGNORED
from experiments.models.turns import said_unwritten

OPEN, CLOSE = "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
LATER = {BaseText: "written by the base model when the run starts", Earlier: "the examples of the earlier tasks"}
SHOWN = 1000  # tokens of a row
STYLE = "background:#cdeac0;color:#000"  # of tokens with loss
NO_FORMULAS = "tex2jax_ignore mathjax_ignore"  # notebooks would draw $...$ as a formula
BETWEEN, LINE_END = "\N{BROKEN BAR}", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"


@dataclass(frozen=True)
class Token:
    """The text of a token, or of several that are one character together. learned: it carries loss."""

    text: str
    learned: bool


@dataclass(frozen=True)
class SourcePreview:
    """A source. facts: lines on its shape and counts. rows: of its first example, which may need several."""

    name: str
    facts: tuple[str, ...]
    rows: tuple[tuple[Token, ...], ...] = ()


@dataclass(frozen=True)
class Preview:
    """The sources of a config. As text, tokens with loss are in angle quotes; a notebook shows them on a colour."""

    sources: tuple[SourcePreview, ...]

    def __str__(self) -> str:
        return "\n\n".join("\n".join(_lines(source)) for source in self.sources)

    def _repr_html_(self) -> str:
        shown = "".join(
            f"<h4>{html.escape(source.name)}</h4>{''.join(f'<div>{html.escape(fact)}</div>' for fact in source.facts)}"
            + "".join(f"<pre style='white-space:pre-wrap'>{_html(row)}</pre>" for row in source.rows)
            for source in self.sources
        )
        return f"<div class='{NO_FORMULAS}'>{shown}</div>"


def preview(config: ExperimentConfig) -> Preview:
    """Return the shape, the counts and one rendered example of each source of a config. Loads the tokenizer only.

    Raises ConfigError or ModelError for data or a template that cannot be used.
    """
    tokenizer, data = config.load_tokenizer(), config.data
    overlong: Overlong = "cut" if data.overlong == "cut" else "drop"  # an error would hide how many are too long
    encoder = Encoder(tokenizer, data.regime, data.length, loss=data.loss, overlong=overlong)
    sides = [("new", one) for one in data.new] + [("old", one) for one in data.old]
    return Preview(tuple(_source(f"{side}: {one.label}", one, encoder, config.seed) for side, one in sides))


def pieces(row: Sequence[Token]) -> Iterator[tuple[str, bool]]:
    """Yield the text of neighbours with and without loss, with a bar between two tokens.

    Codes that a terminal obeys, or that change the order of reading, are written as escapes: the text is of others.
    """
    for learned, tokens in itertools.groupby(row, key=lambda token: token.learned):
        yield BETWEEN.join(without_codes(token.text).replace("\n", LINE_END) for token in tokens), learned


def _source(name: str, source: Source, encoder: Encoder, seed: int) -> SourcePreview:
    later = next((why for kind, why in LATER.items() if isinstance(source, kind)), None)
    if later is not None:
        return SourcePreview(name, (later,))
    words = special(_examples(source, seed), encoder)
    encoded = list(map(encode_of(source, encoder), itertools.islice(_examples(source, seed), MOST)))
    kept = (one for one in _examples(source, seed) if not (source.skips and encoder.refusal(one)))
    first = next(kept, None)
    shape = [f"shape: {source.recognised}"] if source.recognised else []
    rows = [Labelled(row.ids[:SHOWN], row.labels[:SHOWN]) for row in (encoder.labelled(first) if first else [])]
    several = [f"this example is {len(rows)} rows: the template rewrites earlier turns"] if len(rows) > 1 else []
    prompts = said_unwritten(encoder.tokenizer) if encoder.regime == "sft" and not isinstance(first, Text) else []
    notes = (*prompts, *source.notes, *source.test_notes, *several)
    facts = (*shape, *_counted(encoded, words.whole, encoder), *held(words), *notes)
    shown = tuple(_tokens(encoder.tokenizer, row) for row in rows)
    return SourcePreview(without_codes(name), tuple(map(without_codes, facts)), shown)


def _examples(source: Source, seed: int) -> Iterable[Example]:
    """Return the examples in the order in which they are stored, if they are."""
    return source.stored() or source.epoch(0, seed, frozenset())


def _counted(encoded: Sequence[Encoded], whole: bool, encoder: Encoder) -> list[str]:
    found = Lengths(whole=whole)
    for one in encoded:
        found.add(size_of(one))
    learned = sum(label != IGNORED for one in encoded for piece in one.pieces for label in piece.labels)
    of, share = "" if whole else "first ", learned / max(1, found.tokens)
    lines = [f"{of}{found.examples:,} examples: {found.tokens:,} tokens, {learned:,} of them with loss ({share:.0%})"]
    if found.too_long:
        lines.append(
            f"{found.too_long:,} are longer than data.length={encoder.length}: {found.left_out:,} tokens are left "
            f"out ({found.share_left_out:.1%})"
        )
    return [*lines, *refused(found)]


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Labelled) -> tuple[Token, ...]:
    """Return the text that each token adds to those before; parts of one character are put together."""
    tokens: list[Token] = []
    start = 0
    for stop in range(1, len(row.ids) + 1):
        before, whole = (str(tokenizer.decode(row.ids[:end])) for end in (start, stop))
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and stop < len(row.ids):
            continue
        tokens.append(Token(whole[len(before) :], row.labels[stop - 1] != IGNORED))
        start = stop
    return tuple(tokens)


def _lines(source: SourcePreview) -> list[str]:
    rows = [
        "".join(f"{OPEN}{text}{CLOSE}" if learned else text for text, learned in pieces(row)) for row in source.rows
    ]
    return [source.name, *(f"  {fact}" for fact in source.facts), *rows]


def _html(row: Sequence[Token]) -> str:
    parts = ((html.escape(text), learned) for text, learned in pieces(row))
    return "".join(f"<span style='{STYLE}'>{text}</span>" if learned else text for text, learned in parts)

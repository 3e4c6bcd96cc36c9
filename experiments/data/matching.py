"""Compare a reply with the answer: equal but for case, runs of spaces, marks around it and how numbers are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from experiments.data.numerals import WHOLE, tidy
from experiments.data.spelling import BOXED, closed, straight

FRACTION = re.compile(r"[-+]?\d{1,30}/\d{1,30}")
FINAL = "Answer:"  # begins the last line of a worked reply
SAID = re.compile(r"[*_#\s]*(?:final\s+)?answer[*_]*\s*:[*_]*\s*", re.I)  # the same as models write it: **Answer:**
UNSEEN = "\u200b\u200e\u200f\u2060\ufeff"  # letters without a width at the ends of a text
DOLLARS = ("$$", "$")  # around a formula
MARKS = ("**", "*", "`", '"', "'", *DOLLARS)  # around a whole reply
STOPS = ".!?,;:\u3002\uff01\uff1f \n"  # after it
DELIMITED = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
LETTER = re.compile(r"\(?([a-z])[).]")  # of an option: (a), a) and a.
PEELS = 8  # marks around marks that are looked into, which keeps long replies linear


def exact_match(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1.0 if a reply, or its last line, is the answer; else 0.0.

    Case, the number of spaces between words, commas between thousands, the form of quotes and hyphens, punctuation
    after it and marks around it (bold, italics, quotes, backticks, LaTeX's $ and boxes) are ignored; of the answer, a
    full stop and LaTeX's marks. A number may be said as a fraction. (B), B) and B are one letter.
    """
    wanted = [normal(one) for one in peeled(str(entry["answer"]), DOLLARS, "")]
    said = [normal(one) for text in (answer, last_line(answer)) for one in peeled(text)]
    return float(any(same(one, other) for one in dict.fromkeys(said) for other in wanted))


def last_line(reply: str) -> str:
    """Return the last line of a reply that is not empty, without the mark of a final answer."""
    lines = [line for line in reply.splitlines() if line.strip()] or [""]
    line = _bare(lines[-1].strip())
    return line[found.end() :] if (found := SAID.match(line)) else line


def normal(text: str) -> str | Decimal:
    """Return a number as a Decimal, so that 7 equals 7.0; other text lowercased. "1,2" is a list and not a number."""
    text = _bare(_bare(" ".join(straight(tidy(text)).strip(UNSEEN).casefold().split())).rstrip("."))
    text = found[1] if (found := LETTER.fullmatch(text)) else text
    return Decimal(text.replace(",", "")) if WHOLE.fullmatch(text) else text


def peeled(text: str, marks: Sequence[str] = MARKS, stops: str = STOPS) -> Iterator[str]:
    """Yield a text, and what is left of it without a mark or box around it, or a stop after it, again and again."""
    rest = straight(text).strip(UNSEEN).strip()
    for _ in range(PEELS):
        yield rest
        inner = _inside(rest, marks)
        inner = rest.rstrip(stops) if inner == rest else inner
        if inner in ("", rest):
            return
        rest = inner


def _inside(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        if (inner := _bare(text, mark)) != text:
            return inner
    if found := DELIMITED.fullmatch(text):
        return (found[1] or found[2] or "").strip()
    return in_box(text)


def in_box(text: str) -> str:
    """Return what a box of LaTeX holds that is a whole text; else the text."""
    found = BOXED.match(text)
    return text[found.end() : -1].strip() if found and closed(text, found.end()) == len(text) else text


def _bare(text: str, mark: str = "**") -> str:
    """Return a text without a mark around it, that of bold type by default."""
    inner = text[len(mark) : -len(mark)]
    return inner.strip() if text == f"{mark}{inner}{mark}" and mark not in inner.replace(r"\$", "") else text


def same(said: str | Decimal, wanted: str | Decimal) -> bool:
    """Whether two `normal` texts are equal; what is said may be a fraction, 1/2 for .5."""
    if isinstance(said, str) and isinstance(wanted, Decimal) and FRACTION.fullmatch(said):
        top, _, bottom = said.partition("/")
        return int(bottom) != 0 and Fraction(int(top), int(bottom)) == Fraction(wanted)
    return said == wanted

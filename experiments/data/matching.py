"""Compare a reply with the answer: equal but for case, runs of spaces, marks around it and how numbers are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from experiments.data.numerals import WHOLE, tidy
from experiments.data.spelling import straight

FRACTION = re.compile(r"[-+]?\d{1,30}/\d{1,30}")
FINAL = "Answer:"  # begins the last line of a worked reply
SAID = re.compile(r"[*_#\s]*(?:final\s+)?answer[*_]*\s*:[*_]*\s*", re.I)  # the same as models write it: **Answer:**
UNSEEN = "\u200b\u200e\u200f\u2060\ufeff"  # letters without a width at the ends of a text
MARKS = ("**", "*", "`", '"', "'")  # around a whole reply


def exact_match(answer: str, entry: Mapping[str, Any]) -> float:
    """Return 1.0 if a reply, or its last line, is the answer; else 0.0.

    Case, the number of spaces between words, commas between thousands, the form of quotes, a final full stop, and marks
    around the reply (bold, italics, quotes, backticks) are ignored. A number may be said as a fraction.
    """
    wanted = normal(str(entry["answer"]))
    return float(any(_same(one, wanted) for said in (answer, last_line(answer)) for one in (normal(said), plain(said))))


def last_line(reply: str) -> str:
    """Return the last line of a reply that is not empty, without the mark of a final answer."""
    lines = [line for line in reply.splitlines() if line.strip()] or [""]
    line = _bare(lines[-1].strip())
    return line[found.end() :] if (found := SAID.match(line)) else line


def normal(text: str) -> str | Decimal:
    """Return a number as a Decimal, so that 7 equals 7.0; other text lowercased. "1,2" is a list and not a number."""
    text = _bare(_bare(" ".join(straight(tidy(text)).strip(UNSEEN).casefold().split())).rstrip("."))
    return Decimal(text.replace(",", "")) if WHOLE.fullmatch(text) else text


def plain(text: str) -> str | Decimal:
    """Return `normal` text without any of the marks around it."""
    text = straight(text).strip().rstrip(".")
    for mark in MARKS:
        text = _bare(text, mark).rstrip(".")
    return normal(text)


def _bare(text: str, mark: str = "**") -> str:
    """Return a text without a mark around it, that of bold type by default."""
    inner = text[len(mark) : -len(mark)]
    return inner.strip() if text == f"{mark}{inner}{mark}" and mark not in inner else text


def _same(said: str | Decimal, wanted: str | Decimal) -> bool:
    if isinstance(said, str) and isinstance(wanted, Decimal) and FRACTION.fullmatch(said):
        top, _, bottom = said.partition("/")
        return int(bottom) != 0 and Fraction(int(top), int(bottom)) == Fraction(wanted)
    return said == wanted

"""Make text of others safe to print: names and messages from files, models, servers."""

from __future__ import annotations

import re
from typing import Any

# the codes that terminals obey, and those that change the order of reading
CODES = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is one in spreadsheets


def printable(text: str) -> str:
    """Write control characters as escapes: a terminal would obey them (`\\x1b]0;title`), or read backwards (U+202E).

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def without_codes(text: str) -> str:
    """Write the codes of terminals and of the reading order as escapes, for files: someone prints them.

    All else stays: joiners and spaces of many scripts are no letters either, and `printable` would show them.
    """
    return CODES.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_cell(value: Any) -> Any:
    """Return a cell for a CSV file: spreadsheets run a text that begins as a formula, so that gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def from_csv_cell(text: str) -> str:
    """Return the text of which `csv_cell` has made a cell."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def escaped(text: str) -> str:
    """Write text of others for Markdown: no tag, link, picture or code of a terminal."""
    return without_codes(text).replace("<", "&lt;").replace("](", "]\\(").replace("]:", "]\\:")

"""Make text of others safe to print: names and messages from files, models, servers."""

from __future__ import annotations


def printable(text: str) -> str:
    """Write control characters as escapes: a terminal would obey them (`\\x1b]0;title`), or read backwards (U+202E).

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)

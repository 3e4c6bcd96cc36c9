"""Say what of a table is not read, and which of its cells may not mean what they say.

What is found of the rows is counted as `words`: cells of a column, columns that nothing reads, and shapes of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.data.cells import empty_word
from experiments.data.items import Example, Item
from experiments.data.messages import has_nulls, unread_fields
from experiments.data.shapes import SYSTEM, Shape
from experiments.models.conversation import Conversation

NULLS = (
    " with keys that are null, which are learned as they are: the package datasets writes them for what a row does not "
    "have. Leave them out, or save the rows as Parquet, if they mean nothing"
)
UNREAD = " not read: the conversation has another system turn"
LEFT, SHAPE = "column that is not read: ", "shape: "  # begin the words that are no cells
FIELD = "field of messages that is not read: "
ESCAPED = re.compile(  # a backslash and an n, which begin no command of LaTeX
    r"\\n(?!(?:abla|cong|eq?|eg|exists|ewcommand|ewline|geq?|leq?|mid|oindent|olimits|onumber|ormalsize|ot|otin"
    r"|parallel|rightarrow|sim|subseteq|u)(?![A-Za-z]))"
)
MOST = 8  # columns, or fields of messages, that are named
ADVICE = 'If one belongs to the example, put it into the question; in YAML by question: "{context} {question}"'


def passed_over(faults: list[str]) -> list[str]:
    """Say how many rows were passed over, and why the first was."""
    if not faults:
        return []
    return [f"{len(faults)} row{'s' * (len(faults) > 1)} passed over ({faults[0]})"]


def said_empty(words: Mapping[str, int]) -> list[str]:
    """Say which cells are words for an empty cell, and that they are read as text; and what of cells is not read."""
    learned = (
        ": it is learned as text, but many programs write it for an empty cell. Empty such cells if they have no value"
    )
    cells = [
        f"{number:,} cell{'s' * (number > 1)} {where}{'' if where.endswith((UNREAD, NULLS)) else learned}"
        for where, number in sorted(words.items())
        if not where.startswith((LEFT, SHAPE, FIELD))
    ]
    fields = _named(sorted(words), FIELD)
    advice = "A reply that is not to be learned has weight: 0, train: false or loss: false"
    return [*cells, *([f"fields of messages that are not read: {fields}. {advice}"] if fields else [])]


def _named(words: Iterable[str], start: str) -> str:
    """List what the words that begin so name, the first few of it."""
    found = [word.removeprefix(start) for word in words if word.startswith(start)]
    return ", ".join(found[:MOST]) + (f" and {len(found) - MOST} more" if len(found) > MOST else "")


def said_unread(words: Iterable[str]) -> list[str]:
    """Say which columns nothing reads, since one may belong to the question; and that rows have several shapes."""
    left = _named(words, LEFT)
    shapes = [word.removeprefix(SHAPE) for word in words if word.startswith(SHAPE)]
    said = [f"columns that are not read: {left}. {ADVICE}"] if left else []
    together = f"read together: tables of several shapes ({', '.join(shapes)}); for one of them alone, name its path"
    return [*said, together] if len(shapes) > 1 else said


def said_escapes(fields: Mapping[str, Any]) -> list[str]:
    """Say which texts of a config hold a backslash and an n, which YAML reads as a line end in double quotes alone.

    Those of LaTeX (\\nu, \\neq) are meant.
    """
    return [
        f"{name} holds a backslash and an n, not a line end: in YAML a line end is \\n in double quotes alone"
        for name, value in fields.items()
        if isinstance(value, str) and ESCAPED.search(value)
    ]


def said_classes(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which columns hold the numbers of classes, by the names of these: rows have the numbers."""
    return [
        f"column {name!r} holds numbers of classes, which are read as numbers: "
        + ", ".join(f"{number} is {one}" for number, one in enumerate(names[:MOST]))
        + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
        for name, names in found.items()
    ]


def unread_systems(row: Mapping[str, Any], example: Example) -> list[str]:
    """Name the cells of a system turn that are not read, since the conversation begins with other words of one."""
    given = {name: str(row[name]).strip() for name in SYSTEM if not isinstance(row.get(name), bool) and row.get(name)}
    if not any(given.values()) or not isinstance(example, Item) or not isinstance(example.question, Conversation):
        return []
    used = str(example.question.messages[0]["content"]).strip()
    return [f"of column {name!r}{UNREAD}" for name, text in given.items() if text not in ("", used)]


def words_of(shape: Shape, row: Mapping[str, Any]) -> list[str]:
    """Name the cells of a row that are read and only say "no value", or whose tools or calls have keys that do."""
    read = [(name, row.get(name)) for name in (*shape.columns, *shape.also)]
    words = ((name, empty_word(cell)) for name, cell in read)
    found = [f"of column {name!r} with the text {word!r}" for name, word in words if word]
    found += [FIELD + field for _, cell in read for field in unread_fields(cell)]
    return [*found, *(f"of column {name!r}{NULLS}" for name, cell in read if has_nulls(cell))]

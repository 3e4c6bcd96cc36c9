"""Shapes of tables that are read without any setting: conversations, prompts, instructions and texts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common.errors import ConfigError
from experiments.data.cells import BadRow, blank, cell_text
from experiments.data.items import Example, Item, Text, chat
from experiments.data.messages import are_messages, history, messages, said, tools
from experiments.models.conversation import learned

Row = Mapping[str, Any]
SYSTEM = ("system", "system_prompt")  # columns of the system turn


@dataclass(frozen=True)
class Shape:
    """A kind of table. columns: which it must have. read: (row, place) -> example. also: columns read if there are."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, str], Example]
    also: tuple[str, ...] = ()

    def described(self, columns: Collection[str]) -> str:
        """Return the name, and which of a table's columns are read."""
        return f"{self.name} (columns {', '.join(name for name in (*self.columns, *self.also) if name in columns)})"

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Return the columns that are not read, without `text` next to another shape (see `recognised`)."""
        return [str(name) for name in columns if name not in (*self.columns, *self.also, "text")]

    def example(self, row: Row, place: str) -> Example:
        """Convert a row. Raises BadRow."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise BadRow(f"{place} has no column {missing[0]!r}, which a table of the shape {self.name} has")
        return self.read(row, place)


def question_answer(row: Row, place: str) -> Item:
    return Item(_filled(row, "question", place), _filled(row, "answer", place))


def conversation(column: str) -> Callable[[Row, str], Item]:
    """Return the reader of a column of messages."""

    def read(row: Row, place: str) -> Item:
        return as_chat(messages(row[column], column, place), row, place)

    return read


def prompt_completion(row: Row, place: str) -> Item:
    """The loss is on the completion alone: replies in the prompt are its context.

    A completion that is written as messages after a prompt that is a text is a text too: somebody asked for it.
    """
    prompt = said(row["prompt"], "user", "prompt", place)
    asked = not are_messages(row["prompt"])
    reply = said(row["completion"], "assistant", "completion", place, text=asked)
    if prompt[-1]["role"] == reply[0]["role"] == "assistant":
        raise BadRow(
            f"{place}: the prompt ends with the beginning of a reply, and each message is a turn of its own: move it "
            "to the start of the completion"
        )
    return as_chat([*prompt, *reply], row, place, context=len(prompt))


def instruction_output(row: Row, place: str) -> Item:
    """The input follows the instruction after an empty line. A history is what was asked and said before."""
    given = cell_text(row.get("input"), "input", place)
    asked = "\n\n".join(part for part in (_filled(row, "instruction", place), given) if part.strip())
    reply = _filled(row, "output", place)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return as_chat([*history(row.get("history"), "history", place), *turns], row, place)


def document(row: Row, place: str) -> Text:
    return Text(_filled(row, "text", place))


def as_chat(turns: list[dict[str, Any]], row: Row, place: str, context: int = 0) -> Item:
    """Return messages with the system turn and the tools of other columns. Raises BadRow for one without a reply."""
    system = next((text for name in SYSTEM if (text := cell_text(row.get(name), name, place)).strip()), "")
    if system and turns[0]["role"] != "system":
        turns, context = [{"role": "system", "content": system}, *turns], context + bool(context)
    asked = next((i for i, one in enumerate(turns) if one["role"] == "user"), len(turns))
    if not any(one["role"] == "assistant" and learned(one) for one in turns[max(asked, context) :]):
        raise BadRow(f"{place} has no reply to a user's turn, so there is nothing to learn")
    replies = any(one["role"] == "assistant" for one in turns[:context])
    return chat(turns, tools(row.get("tools"), "tools", place), place, context if replies else 0)


def _filled(row: Row, column: str, place: str) -> str:
    text = cell_text(row[column], column, place)
    if blank(text):
        raise BadRow(f"{place}: column {column!r} is empty")
    return text


MORE = (*SYSTEM, "tools")
SHAPES = (
    Shape("question and answer", ("question", "answer"), question_answer),
    Shape("messages", ("messages",), conversation("messages"), MORE),
    Shape("conversations", ("conversations",), conversation("conversations"), MORE),
    Shape("prompt and completion", ("prompt", "completion"), prompt_completion, MORE),
    Shape("instruction and output", ("instruction", "output"), instruction_output, ("input", "history", *MORE)),
    Shape("text", ("text",), document),
)


def recognised(columns: Collection[str], place: str) -> Shape:
    """Return the shape of a table with these columns. Raises ConfigError for none, or for several.

    A table of questions and answers is read as one, whatever else it has, and `text` next to another shape is passed
    over: it is the same example, written out.
    """
    found = [shape for shape in SHAPES if set(shape.columns) <= set(columns)]
    if SHAPES[0] in found:
        return SHAPES[0]
    found = [shape for shape in found if shape is not SHAPES[-1]] or found
    if len(found) == 1:
        return found[0]
    what = f"fits several shapes, {' and '.join(one.name for one in found)}" if found else "has no known shape"
    known = "; ".join(" + ".join(shape.columns) for shape in SHAPES)
    typo = "" if found else _typo(columns)
    raise ConfigError(
        f"{place} {what} (its columns: {', '.join(map(str, columns)) or 'none'}; known shapes: {known}){typo}. Name "
        "the columns with question: and answer:, that of a conversation with messages:, or that of a document with "
        "text:"
    )


def _typo(columns: Collection[str]) -> str:
    """Name a column that would make a known shape with one letter or two changed; else nothing."""
    for wanted in (name for shape in SHAPES for name in shape.columns if name not in columns):
        near = difflib.get_close_matches(wanted, [name for name in columns if isinstance(name, str)], 1, 0.8)
        if near:
            return f"; did you mean {wanted!r} by {near[0]!r}"
    return ""

"""A question of several messages: what was said before a reply, and the tools that the reply may call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.errors import RefusedRow

Message = Mapping[str, Any]  # role and content, as chat templates read them; a reply may have tool_calls
_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder for each call
ROLE = '{"role": "'  # begins most lines of a conversation
WEIGHT = "weight"  # field of a message; 0: its reply is not learned


class Conversation(str):
    """A question of several messages. Its text has a JSON object on each line: the tools, if any, and each message.

    So a conversation can be asked wherever a question is a text; only the chat template reads its messages. place: the
    row it was read from, for errors; it is no part of the text.
    """

    place: str = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [line for line in self._lines if "role" in line]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """JSON schemas of the tools."""
        return [tool for line in self._lines if "role" not in line for tool in line["tools"]]

    @property
    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.split("\n")]


def question_of(messages: Sequence[Message], tools: Sequence[Message] = (), place: str = "") -> str:
    """Return messages as a question: a Conversation, or the plain text of a single user turn without tools."""
    if not tools and len(messages) == 1 and messages[0].keys() == {"role", "content"} and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    lines = [{"tools": list(tools)}, *messages] if tools else messages
    question = Conversation("\n".join(map(_json, lines)))
    question.place = place
    return question


def earlier_questions(question: str) -> list[str]:
    """Return what each reply within a question was a reply to."""
    if not isinstance(question, Conversation):
        return []
    lines = question.split("\n")  # the first of them are the question before a reply, as `question_of` writes it
    roles = list(map(_role, lines))
    tools = 0 if roles[0] else 1
    replies = [i for i, role in enumerate(roles) if i > tools and role == "assistant"]
    return [question_of([json.loads(lines[0])]) if i == 1 else Conversation("\n".join(lines[:i])) for i in replies]


def _role(line: str) -> str:
    """Return the role of a message's line, which is most often its first field; nothing for the line of the tools."""
    return line[len(ROLE) :].partition('"')[0] if line.startswith(ROLE) else str(json.loads(line).get("role", ""))


def messages_of(question: str) -> list[dict[str, Any]]:
    """Return the messages of a question."""
    return question.messages if isinstance(question, Conversation) else [{"role": "user", "content": question}]


def tools_of(question: str) -> list[dict[str, Any]]:
    """Return the tools that may be called in reply to a question."""
    return question.tools if isinstance(question, Conversation) else []


def said(question: str) -> str:
    """Return what the messages of a question say, without roles and system turns; of a plain text the text itself.

    The same words are asked under several system turns in many tables.
    """
    return "\n".join(str(message["content"]) for message in messages_of(question) if message["role"] != "system")


def learned(message: Message) -> bool:
    """Whether a reply is learned, unless its weight says that it is not."""
    return message.get(WEIGHT, 1) != 0


def turn_of(reply: str | Message) -> Message:
    """Return a reply as a message."""
    return {"role": "assistant", "content": reply} if isinstance(reply, str) else reply


def plain(question: str) -> str:
    """Return a question as text for a model without a chat template: `Question: ...\\nAnswer:`.

    The turns of a conversation are one after the other, after the text of its system turn. Raises RefusedRow for
    tools, which have no plain form.
    """
    marks = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
    messages = messages_of(question)
    if tools_of(question) or any(turn["role"] not in marks or "tool_calls" in turn for turn in messages):
        raise RefusedRow(
            f"{question[:60]!r} has tools, and this tokenizer has no chat template to write them: give it one with "
            "data.template"
        )
    turns = [f"{marks[turn['role']]}{turn['content']}" for turn in messages]
    return "\n".join(turns) + "\nAnswer:"

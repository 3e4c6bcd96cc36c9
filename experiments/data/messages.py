"""Read the messages and the tools of a row, in the forms in which people store them, as chat templates want them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from experiments.common.files import parse_json
from experiments.data.cells import BadRow, blank, cell_text, whole_texts
from experiments.models.conversation import WEIGHT

CALL = "function_call"  # role, or field, of a tool call in older tables
ROLES = {  # name in a table -> role of the message
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
    CALL: "assistant",
}
KEPT = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")  # other fields that templates read
UNLEARNED = (WEIGHT, "train", "loss")  # fields that say whether a reply is learned
READ = {"role", "from", "content", "value", "tool_calls", CALL, *KEPT, *UNLEARNED}
PLAIN = ({"role", "content"}, {"from", "value"})  # fields of a message that has nothing else
WRITTEN = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")  # begins a list of messages in a text
Message = dict[str, Any]


def messages(cell: Any, column: str, place: str) -> list[Message]:
    """Return the messages of a cell: a list, the JSON of one, or a single message. Raises BadRow."""
    value = _parsed(cell, column, place)
    if isinstance(value, Mapping):
        value = _listed(value)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{place}: column {column!r} holds no messages")
    return [_message(one, f"{place}: message {n} of column {column!r}") for n, one in enumerate(value, start=1)]


def _listed(value: Mapping[str, Any]) -> list[Any]:
    """Return a single message as a list, or the messages of an object with a list for each field."""
    if value and all(isinstance(cells, list) for cells in value.values()):
        return [dict(zip(value, cells, strict=True)) for cells in itertools.zip_longest(*value.values())]
    return [value]


def are_messages(cell: Any) -> bool:
    """Whether a cell holds messages and no text: a list, or the text of one, as cells of CSV files are."""
    return bool(WRITTEN.match(cell)) if isinstance(cell, str) else not isinstance(cell, int | float | None)


def said(cell: Any, role: str, column: str, place: str, text: bool = False) -> list[Message]:
    """Return the messages of a cell (`are_messages`), or the text of a single one of this role. text: it is a text."""
    if are_messages(cell) and not (text and isinstance(cell, str)):
        return messages(cell, column, place)
    content = cell_text(cell, column, place)
    if blank(content):
        raise BadRow(f"{place}: column {column!r} is empty")
    return [{"role": role, "content": content}]


def history(cell: Any, column: str, place: str) -> list[Message]:
    """Return the messages of earlier turns: a list of [question, reply], as tables with instructions have it."""
    pairs = _parsed(cell, column, place) or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow(f"{place}: column {column!r} holds no list of [question, reply]")
    turns = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [message for role, text in turns for message in said(text, role, column, place, text=True)]


def tools(cell: Any, column: str, place: str) -> list[Message]:
    """Return the JSON schemas of the tools of a cell: a list of them, its JSON, or nothing. Raises BadRow."""
    value = _parsed(cell, column, place) or []
    found = [_parsed(one, column, place) for one in (value if isinstance(value, list) else [value])]
    made = [_function(one) for one in found if isinstance(one, Mapping)]
    if len(made) < len(found) or not all(_named(one["function"]) for one in made):
        raise BadRow(f"{place}: column {column!r} holds no list of tools, which are objects with a name")
    return list(whole_texts(made, column, place))


def has_nulls(cell: Any) -> bool:
    """Whether tools, or the calls of messages, have keys that are null."""
    listed = [one for one in cell if isinstance(one, Mapping)] if isinstance(cell, list) else []
    return any(map(_null, (_called(one) for one in listed)))


def unread_fields(cell: Any) -> set[str]:
    """Return the fields of messages that nothing reads and that hold something. cell: of messages, or any other."""
    try:
        value = _parsed(cell, "", "") if not isinstance(cell, str) or WRITTEN.match(cell) else None
    except BadRow:
        return set()
    value = _listed(value) if isinstance(value, Mapping) else value
    listed = [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
    turns = [one for one in listed if {"role", "from"} & one.keys()]
    return {str(key) for one in turns for key in one.keys() - READ if one[key] not in (None, "", [], {})}


def _called(one: Mapping[str, Any]) -> Any:
    """Return the calls of a message; of a tool, all of it."""
    return [one.get("tool_calls"), one.get(CALL)] if {"role", "from"} & one.keys() else one


def _null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(one is None or _null(one) for one in value.values())
    return isinstance(value, list) and any(map(_null, value))


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow(f"{place} is a {type(value).__name__}, not an object with role and content (or from and value)")
    name = value.get("role") or value.get("from")
    if name not in ROLES:
        raise BadRow(f"{place} has the role {name!r}; known: {', '.join(ROLES)}")
    made: Message = {"role": ROLES[name], "content": "" if name == CALL else _content(value, ROLES[name], place)}
    calls: list[Message] = []
    if name == CALL or value.keys() not in PLAIN:
        made |= {key: value[key] for key in KEPT if value.get(key)}
        made |= {WEIGHT: 0} if made["role"] == "assistant" and _unlearned(value, place) else {}
        calls = _calls(value, name, place)
        for key, one in {**made, "tool_calls": calls}.items():
            whole_texts(one, key, place)
        made |= {"tool_calls": calls} if calls else {}
    if blank(made["content"]) and not calls and made["role"] in ("user", "assistant"):
        raise BadRow(f"{place} ({name}) is empty")
    return made


def _unlearned(message: Mapping[str, Any], place: str) -> bool:
    """Whether a reply says that it is not learned, in one of the ways in use: weight: 0, train: false, loss: false."""
    marks = {name: message[name] for name in UNLEARNED if message.get(name) is not None}
    for name, mark in marks.items():
        if mark not in (0, 1):
            raise BadRow(f"{place} has {name} {mark!r}: a reply is learned (1 or true), or it is not (0 or false)")
    return 0 in marks.values()


def _content(message: Mapping[str, Any], role: str, place: str) -> str:
    """Return the text of a message. A list of parts is joined; a result of a tool may be any JSON."""
    content = _said(message)
    if isinstance(content, list) and all(isinstance(part, Mapping) and "type" in part for part in content):
        other = [part["type"] for part in content if part["type"] != "text"]
        if other:
            raise BadRow(f"{place} holds a part of type {other[0]!r}; only text can be read")
        content = "".join(cell_text(part.get("text"), "text", place) for part in content)
    if role == "tool" and isinstance(content, list | Mapping):
        return json.dumps(whole_texts(content, "content", place), ensure_ascii=False)
    return cell_text(content, "content", place)


def _said(message: Mapping[str, Any]) -> Any:
    return message["content"] if message.get("content") is not None else message.get("value")


def _calls(message: Mapping[str, Any], name: str, place: str) -> list[Message]:
    """Return the tool calls of a message, with their arguments as an object."""
    calls = _parsed(message.get("tool_calls"), "tool_calls", place) or []
    if name == CALL or message.get(CALL):
        calls = _parsed(message.get(CALL) or _said(message), CALL, place)
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow(f"{place} has tool calls that are no list of objects")
    return [_call(_function(call), place) for call in calls]


def _call(call: Message, place: str) -> Message:
    function = call["function"]
    arguments = _parsed(function.get("arguments"), "arguments", place) if _named(function) else None
    if not isinstance(arguments or {}, Mapping) or not _named(function):
        raise BadRow(f"{place} has a tool call without a name, or whose arguments are no object")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _named(function: Any) -> bool:
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _function(value: Mapping[str, Any]) -> Message:
    """Return a tool or a call in the form {"type": "function", "function": {...}}."""
    if "function" in value:
        return dict(value)
    outer = {"type": "function", **{key: value[key] for key in ("id",) if key in value}}
    return {**outer, "function": {key: one for key, one in value.items() if key not in ("id", "type")}}


def _parsed(cell: Any, column: str, place: str) -> Any:
    """Return the value of a cell that is JSON, and any other cell as it is."""
    if not isinstance(cell, str) or not cell.strip():
        return cell or None
    try:
        return parse_json(cell, once=True)
    except ValueError as error:
        raise BadRow(f"{place}: {column!r} is not JSON: {error}") from None

"""Messages and tools in the forms in which people store them, and a line for each that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments.data.cells import BadRow
from experiments.data.messages import messages, said, tools

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("human", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("model", "assistant"),
        ("developer", "system"),
        ("observation", "tool"),
        ("function_response", "tool"),
    ],
)
def test_roles_by_other_names(given: str, role: str) -> None:
    for row in ({"from": given, "value": "x"}, {"role": given, "content": "x"}, {"role": given, "value": "x"}):
        assert messages([row], "c", "here") == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": null}'}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": null}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": null}}'},
    ],
)
def test_calls_in_other_forms(message: dict[str, Any]) -> None:
    assert messages([message], "c", "here") == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_a_result_may_be_any_json_and_other_fields_stay() -> None:
    given = {"role": "tool", "content": {"a": [1]}, "tool_call_id": "123", "weight": 1, "name": None}
    assert messages([given], "c", "here") == [{"role": "tool", "content": '{"a": [1]}', "tool_call_id": "123"}]
    thought = {"role": "assistant", "content": "x", "reasoning_content": "y"}
    assert messages([thought], "c", "here") == [thought]


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"train": 0}, {"loss": 0.0}], ids=str
)
def test_a_reply_that_is_not_learned(flag: dict[str, Any]) -> None:
    assert messages([{**USER, **flag}], "c", "here") == [USER]  # questions are not learned anyway
    reply = {"role": "assistant", "content": "x"}
    assert messages([{**reply, **flag}], "c", "here") == [{**reply, "weight": 0}]
    learned = [{**reply, "weight": 1}, {**reply, "weight": None}, {**reply, "train": True}, {**reply, "loss": True}]
    assert messages(learned, "c", "here") == [reply] * 4


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ([], r"column 'c' holds no messages"),
        (None, r"column 'c' holds no messages"),
        (3, r"column 'c' holds no messages"),
        ("hi", r"'c' is not JSON"),
        (["hi"], r"message 1 of column 'c' is a str, not an object with role and content"),
        ([USER, {"role": "narrator", "content": "x"}], r"message 2 .* has the role 'narrator'; known: user, human"),
        ([{"content": "x"}], r"has the role None"),
        ([{"role": "user", "content": " "}], r"message 1 of column 'c' \(user\) is empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"part of type 'image'; only text can be read"),
        ([{"role": "user", "content": {"a": 1}}], r"column 'content' holds a dict"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], r"message 1 of column 'c' \(user\) is empty"),
        ([{"role": "user", "content": [{"type": "text", "text": ["a"]}]}], r"column 'text' holds a list"),
        (
            [{"role": "assistant", "content": "x", "train": "false"}],
            r"has train 'false': a reply is learned \(1 or true",
        ),
        ([{"role": "user", "content": "\ud83d"}], r"half of a character"),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": "\ud83d"}],
            r"'reasoning_content' holds half of a",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": ["\ud83d"]}}]}],
            r"'tool_calls' holds h",
        ),
        ([{"role": "tool", "content": [{"\ud83d": 1}]}], r"column 'content' holds half of a character"),
        ([{"role": "assistant", "tool_calls": ["f"]}], r"tool calls that are no list of objects"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], r"a tool call without a name"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], r"whose arguments are no object"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], r"'arguments' is not JSON"),
        ("[" * 100_000, r"'c' is not JSON"),
    ],
)
def test_what_cannot_be_used(cell: Any, why: str) -> None:
    with pytest.raises(BadRow, match=f"here.*{why}"):
        messages(cell, "c", "here")


def test_a_list_for_each_field() -> None:
    """As `datasets` gives a sequence of objects in some versions."""
    given = {"role": ["user", "assistant"], "content": ["hi", "hello"]}
    assert messages(given, "c", "here") == [USER, {"role": "assistant", "content": "hello"}]


def test_said() -> None:
    assert said("hi", "user", "prompt", "here") == [USER]
    assert said([USER], "user", "prompt", "here") == said(json.dumps([USER]), "user", "prompt", "here") == [USER]
    with pytest.raises(BadRow, match=r"here: 'prompt' is not JSON"):
        said(str([USER]), "user", "prompt", "here")  # as pandas writes a list to CSV
    for text in ('["role"]', '[{"name": "Ada"}]', "[{x}]", json.dumps(USER)):
        assert said(text, "user", "prompt", "here") == [{"role": "user", "content": text}]
    assert said(USER, "user", "prompt", "here") == [USER]
    with pytest.raises(BadRow, match=r"here: column 'prompt' is empty"):
        said(None, "user", "prompt", "here")


@pytest.mark.parametrize("form", [list, json.dumps, lambda value: [json.dumps(one) for one in value]])
def test_tools(form: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": {}}}}
    assert tools(form([tool]), "tools", "here") == tools(form([tool["function"]]), "tools", "here") == [tool]
    assert tools(None, "tools", "here") == tools("", "tools", "here") == tools([], "tools", "here") == []
    for wrong in (3, {"function": "f"}, {"description": "no name"}):
        with pytest.raises(BadRow, match="holds no list of tools"):
            tools(form([wrong]), "tools", "here")
    with pytest.raises(BadRow, match="here: column 'tools' holds half of a character"):
        tools(form([{**tool["function"], "description": "\ud83d"}]), "tools", "here")

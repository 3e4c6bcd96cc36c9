"""A question of several messages is a text that knows its messages."""

from __future__ import annotations

import copy
import pickle

import pytest

from experiments.common.errors import ConfigError
from experiments.models.conversation import (
    Conversation,
    Message,
    earlier_questions,
    messages_of,
    plain,
    question_of,
    tools_of,
    turn_of,
)

HI = {"role": "user", "content": 'h"i\n\u2028'}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "f"}}


def test_one_question_is_its_text() -> None:
    assert type(question_of([HI])) is str
    assert messages_of("hi") == [{"role": "user", "content": "hi"}]
    assert tools_of("hi") == []


@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_messages_are_as_they_were_in_copies_too(tools: list[dict[str, object]]) -> None:
    question = question_of([SYSTEM, HI], tools, "a.jsonl, line 3")
    for one in (question, copy.deepcopy(question), pickle.loads(pickle.dumps(question))):
        assert isinstance(one, Conversation)
        assert (one.messages, one.tools, one.place) == ([SYSTEM, HI], tools, "a.jsonl, line 3")
        assert one == question
    assert question != question_of([SYSTEM], tools)


def test_a_reply_as_a_message() -> None:
    assert turn_of("x") == {"role": "assistant", "content": "x"} == turn_of(turn_of("x"))


def test_plain_text() -> None:
    assert plain("hi") == "Question: hi\nAnswer:"
    turns = [SYSTEM, {"role": "user", "content": "a?"}, turn_of("A"), {"role": "user", "content": "b?"}]
    assert plain(question_of(turns)) == "Be brief.\nQuestion: a?\nAnswer: A\nQuestion: b?\nAnswer:"
    with pytest.raises(ConfigError, match=r"has tools, and this tokenizer has no chat template"):
        plain(question_of([HI], [TOOL]))


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "f"}}]])
@pytest.mark.parametrize("system", [False, True])
def test_earlier_questions_are_those_of_the_messages_before_each_reply(system: bool, tools: list[Message]) -> None:
    turns: list[Message] = [{"role": "system", "content": "é"}] if system else []
    turns += [{"role": role, "content": f"{role}\n{i}"} for i in range(3) for role in ("user", "assistant")]
    turns += [{"role": "user", "content": ""}]
    expected = [question_of(turns[:i], tools) for i, one in enumerate(turns) if one["role"] == "assistant"]
    found = earlier_questions(question_of(turns, tools, "row 3"))
    assert found == expected
    assert [type(one) for one in found] == [type(one) for one in expected]
    assert earlier_questions("a text") == []


def test_a_role_after_the_content_is_found() -> None:
    turns: list[Message] = [
        {"content": f"{role}: {i}", "role": role} for i in range(2) for role in ("user", "assistant")
    ]
    question = question_of(turns)
    assert earlier_questions(question) == ["user: 0", question_of(turns[:3])]

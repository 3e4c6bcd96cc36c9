"""The two turns of a chat: the generation prompt, the reply, and what a template writes around it."""

from __future__ import annotations

import pytest

from experiments.common.errors import ConfigError
from experiments.models.conversation import question_of
from experiments.models.turns import Turns, prompt_text, said_unwritten, turns, unwritten, written
from tests.helpers.byte_level import CHATML, QWEN3, R1, byte_tokenizer
from tests.helpers.chat_families import FAMILIES, family_tokenizer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, Turns("", "", "<|im_end|>\n")),
        (QWEN3, Turns("", "<think>\n\n</think>\n\n", "<|im_end|>\n")),
        (R1, Turns("<think>\n", "", "</s>")),
        (CHATML.partition("{% if add")[0], Turns("", "<|im_start|>assistant\n", "<|im_end|>\n")),
        (R1.replace("{{ m.content }}</s>", "</think>{{ m.content }}</s>"), Turns("<think>\n", "</think>", "</s>")),
    ],
    ids=["chatml", "block in whole chats", "block in prompts", "no generation prompt", "other tokens in the two"],
)
def test_what_a_template_writes_around_a_reply(template: str, expected: Turns) -> None:
    tokenizer = byte_tokenizer(template, extra=["<think>", "</think>"])
    assert turns(tokenizer) == expected
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": " <4\n"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert prompt_text(tokenizer, "2+2?") + written(tokenizer, "2+2?", " <4\n") + expected.tail == whole
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt_text(tokenizer, "2+2?") + expected.unwritten == asked
    said = said_unwritten(tokenizer)
    assert (f"ends a prompt with {expected.unwritten!r}" in said[0]) if expected.unwritten else not said


def test_another_template_is_looked_at_again() -> None:
    tokenizer = byte_tokenizer(CHATML)
    assert turns(tokenizer).opening == ""
    tokenizer.chat_template = QWEN3
    assert turns(tokenizer).opening == "<think>\n\n</think>\n\n"


def test_a_question_that_the_reply_changes() -> None:
    shortened = "{% if messages|length > 1 %}{{ messages[1].content }}{% else %}{{ messages[0].content }}{% endif %}"
    with pytest.raises(ConfigError, match="writes a question in another way once its reply follows"):
        turns(byte_tokenizer(shortened))


def test_one_chat_that_is_written_otherwise() -> None:
    hidden = CHATML.replace(
        "{{ m['content'] }}", "{% if 'no' not in messages[-1]['content'] %}{{ m['content'] }}{% endif %}"
    )
    tokenizer = byte_tokenizer(hidden)
    assert written(tokenizer, "hi", "yes") == "yes"
    with pytest.raises(ConfigError, match=r"writes the question 'hi' in another way once its reply 'no' follows"):
        written(tokenizer, "hi", "no")


@pytest.mark.parametrize("name", FAMILIES)
def test_words_that_a_template_leaves_out_are_found(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    system = [{"role": "system", "content": "Be  brief."}] * family.system
    turns = [{"role": "user", "content": " a?\n"}, {"role": "assistant", "content": "<think>t</think> b"}]
    question = question_of([*system, *turns, {"role": "user", "content": "c?"}])
    assert unwritten(tokenizer, question, " d,\n\n<|im_end|> e ") == ""  # earlier thoughts do not count
    thought = "<think>why</think>\n\nso"
    assert unwritten(tokenizer, "a?", thought) == (thought if name in ("deepseek-r1", "qwen-3") else "")
    reply = {"role": "assistant", "content": "so", "reasoning_content": "why"}
    assert unwritten(tokenizer, "a?", reply) == ("" if "reasoning_content" in str(tokenizer.chat_template) else "why")

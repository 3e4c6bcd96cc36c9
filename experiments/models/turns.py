"""The text of a question and its reply, as the chat template writes the two turns."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from experiments.common.errors import ConfigError, RefusedRow
from experiments.models.conversation import Conversation, Message, messages_of, plain, tools_of, turn_of
from experiments.models.words import found, special_tokens, spelled

QUESTION, REPLY = "@@question@@", "@@reply@@"
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a reply; templates read one of them, or none
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
# what models write around their thoughts; of some these are special tokens
THOUGHT_MARKS = {
    THOUGHT_BEGINS: THOUGHT_ENDS,
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker
}


@dataclass(frozen=True)
class Turns:
    """How a template writes a reply: `prompt + opening + reply + tail`, where prompt + unwritten is what it asks with.

    unwritten: end of the generation prompt that whole chats do not have (R1 opens a think block there and drops it
    later). opening: what whole chats have between the generation prompt and the reply (Qwen3: an empty think block).
    """

    unwritten: str
    opening: str
    tail: str


def turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """Return how the tokenizer's chat template writes a reply. Raises ConfigError if the two turns do not add up."""
    return _turns(tokenizer, str(tokenizer.chat_template))


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Return the chat up to where a reply begins: the generation prompt, without what whole chats do not have.

    Raises ConfigError, as do all functions here, for a conversation that the template refuses.
    """
    return _asked(tokenizer, question).removesuffix(turns(tokenizer).unwritten)


def written(tokenizer: PreTrainedTokenizerBase, question: str, reply: str | Message) -> str:
    """Return what the template writes after `prompt_text`, up to the end of the reply: its opening and the reply.

    Raises ConfigError if the template writes this chat in another way than others.
    """
    prompt, tail = prompt_text(tokenizer, question), turns(tokenizer).tail
    whole = _whole(tokenizer, question, reply)
    if not whole.startswith(prompt) or not whole.endswith(tail) or len(whole) < len(prompt) + len(tail):
        raise RefusedRow(
            f"{_row(question)}the chat template writes the question {question[:60]!r} in another way once its reply "
            f"{str(turn_of(reply)['content'])[:60]!r} follows, so a model would be asked otherwise than it was "
            "trained: use another template, or regime: cpt with plain texts"
        )
    return whole[len(prompt) : len(whole) - len(tail)]


def said_unwritten(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Say which end of the generation prompt is left out of all prompts, since whole chats do not have it."""
    end = turns(tokenizer).unwritten if tokenizer.chat_template else ""
    said = f"the chat template ends a prompt with {end!r}, which it does not write in a whole chat, so it is left out: "
    return [f"{said}in training, and wherever a model is asked"] if end else []


def called(tokenizer: PreTrainedTokenizerBase, question: str, reply: str | Message) -> str:
    """Return what the template writes after `prompt_text` for calls of tools that end with a token of their own.

    It is empty for all other replies. Without that token, `written` raises ConfigError.
    """
    if "tool_calls" not in turn_of(reply):
        return ""
    prompt, whole = prompt_text(tokenizer, question), _whole(tokenizer, question, reply)
    text = whole[len(prompt) :].rstrip() if whole.startswith(prompt) else ""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    usual = whole.endswith(turns(tokenizer).tail)
    return text if not usual and text.endswith(tuple(special)) else ""


def unwritten(tokenizer: PreTrainedTokenizerBase, question: str, reply: str | Message, thoughts: bool = False) -> str:
    """Return the first words of a chat that the template leaves out or changes, but for spaces; nothing without any.

    Results of tools do not count, as many templates rewrite them. thoughts: whether those of earlier replies do, which
    many templates drop: each is learned in a row of its own, but not if the whole chat is one text.
    """
    last = turn_of(reply)
    if tokenizer.chat_template:
        text = _whole(tokenizer, question, reply)
    else:
        text = as_words(tokenizer, plain(question) + str(last["content"]))
    text, found = _squeezed(text), list[str]()
    for one in messages_of(question):
        if one["role"] == "assistant" and not thoughts:
            found.append(str(one["content"]).rpartition(THOUGHT_ENDS)[2])
        elif one["role"] != "tool":
            found += _said(one)
    found += _said(last)
    return next((one for one in found if _squeezed(as_words(tokenizer, one)) not in text), "").strip()


def _said(message: Message) -> list[str]:
    return [str(message[name]) for name in ("content", *THOUGHTS) if message.get(name)]


def _squeezed(text: str) -> str:
    return "".join(text.split())


@functools.lru_cache(maxsize=8)
def _turns(tokenizer: PreTrainedTokenizerBase, template: str) -> Turns:
    """template: the tokenizer's own, to look again once it has another."""
    asked, whole = _asked(tokenizer, QUESTION), _whole(tokenizer, QUESTION, REPLY)
    prompt = _common_start(asked, whole, [str(token) for token in tokenizer.added_tokens_decoder.values()])
    after, _, tail = whole.rpartition(REPLY)
    if QUESTION not in prompt or len(after) < len(prompt):
        raise ConfigError(
            "the chat template writes a question in another way once its reply follows, so a model would be asked "
            "otherwise than it was trained: use another template"
        )
    return Turns(asked[len(prompt) :], after[len(prompt) :], tail)


def _common_start(one: str, other: str, tokens: Collection[str]) -> str:
    """Return the text that both start with and that ends inside none of the tokens: <think> and </think> share `<`."""
    length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    spans = [match.span() for text in (one, other) for match in pattern.finditer(text)]
    return one[: min([length, *(start for start, end in spans if start < length < end)])]


def _asked(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    return _rendered_prompt(tokenizer, str(tokenizer.chat_template), question)


@functools.lru_cache(maxsize=4)  # the tokens of one reply need it several times
def _rendered_prompt(tokenizer: PreTrainedTokenizerBase, template: str, question: str) -> str:
    return _render(tokenizer, question, messages_of(question), add_generation_prompt=True)


def _whole(tokenizer: PreTrainedTokenizerBase, question: str, reply: str | Message) -> str:
    return _render(tokenizer, question, [*messages_of(question), turn_of(reply)])


def _render(tokenizer: PreTrainedTokenizerBase, question: str, messages: Sequence[Message], **options: Any) -> str:
    """Return the text of messages with the tools of a question, in which their words hold no `marks`.

    Raises ConfigError if the template refuses them.
    """
    turns, tools = as_words(tokenizer, [list(messages), tools_of(question)])
    try:
        text = str(tokenizer.apply_chat_template(turns, tools=tools or None, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # of Jinja's expressions too
        roles = [str(message["role"]) for message in messages]
        raise RefusedRow(
            f"{_where(question)}the chat template refuses a conversation of the roles {', '.join(roles)} ({error}): "
            f"{_advice(roles)}"
        ) from error
    if left_out := [name for name, uses in _tools_named(question, messages).items() if text.count(name) < uses]:
        raise RefusedRow(
            f"{_where(question)}the chat template leaves out the tool {left_out[0]!r}: give one that writes tools with "
            "data.template, or leave the tools out of the data"
        )
    return text


def marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message]
) -> list[tuple[int, int]]:
    """Return where the text of a chat is inside of the template's markers: first character and after the last."""
    turns, given = as_words(tokenizer, [list(messages), list(tools)])
    turns = [{name: value for name, value in one.items() if value is not None} for one in turns]
    options: dict[str, Any] = {"chat_template": str(tokenizer.chat_template), **tokenizer.special_tokens_map}
    found: Any = render_jinja_template([turns], given or None, return_assistant_tokens_mask=True, **options)
    return [(start, stop) for start, stop in found[1][0] if start < stop]


def as_words(tokenizer: PreTrainedTokenizerBase, value: Any) -> Any:
    """Return messages or a text that are somebody's words, so that `marks` in them are encoded as text."""
    return spelled(value, marks(tokenizer)) if found(value, special_tokens(tokenizer)) else value


def marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the special tokens that begin or end texts and turns: those of the template, and bos, eos and pad.

    Others (calls of tools, images) are what they are in the words of a chat too.
    """
    return _marks(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """template: as in `_turns`."""
    ends = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) if token}
    written = _asked(tokenizer, QUESTION) + _whole(tokenizer, QUESTION, REPLY) if tokenizer.chat_template else ""
    tokens = special_tokens(tokenizer)
    return frozenset(found(written, tokens) | (ends & tokens))


def _tools_named(question: str, messages: Sequence[Message]) -> Counter[str]:
    """Count how often the tools that may be called and the calls name each tool."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return Counter(str(one["function"].get("name", "")) for one in (*tools_of(question), *calls))


def _advice(roles: Sequence[str]) -> str:
    """Return what to do about a conversation that a template refuses."""
    found = []
    if "system" in roles:
        found.append("data.merge_system: true puts a system turn before the first question")
    if any(one == other for one, other in itertools.pairwise(roles)):
        found.append("turns of one role that follow each other can be joined in the data")
    return ", ".join([*found, "another template can be given with data.template"])


def _where(question: str) -> str:
    """Return the row of a question, or its beginning if that is not known."""
    return _row(question) or f"question {question[:60]!r}: "


def _row(question: str) -> str:
    return f"{question.place}: " if isinstance(question, Conversation) and question.place else ""

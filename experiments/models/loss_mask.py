"""Token ids and labels of a conversation: which tokens carry the loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError, RefusedRow
from experiments.models.conversation import Message, learned, question_of
from experiments.models.tokens import IGNORED, answer_ids, prompt_ids

Loss = Literal["all_turns", "last_turn", "all_tokens"]
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Turn:
    """A reply of a conversation. index: of its message. prompt: what the model reads before it writes the answer."""

    index: int
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Labelled:
    """Token ids and their labels: IGNORED for tokens without loss."""

    ids: list[int]
    labels: list[int]


def labelled(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] = (),
    loss: Loss = "all_turns",
    first: int = 0,
    place: str = "",
) -> list[Labelled]:
    """Return the rows of a conversation. Each prompt in them is exactly what is asked at generation.

    One row holds all replies if each prompt goes on where the reply before it ended. Else the template has rewritten
    what was said (earlier thoughts are dropped, or no end of turn is written), and a reply whose prompt does not go on
    starts a row of its own. The loss is on the replies with their ends of turn, from the message `first` on: on all of
    them, on the last, or on all tokens but those of tool results. A reply to nothing (a greeting) carries none, and
    neither does one of weight 0. Markers of the template ({% generation %}) take more tokens of a reply out of the
    loss, but never its end of turn.

    place: the row, for errors. Raises RefusedRow if the template refuses the conversation, and for all_tokens if tool
    results cannot be found again because it has rewritten them.
    """
    replies = [i for i, one in enumerate(messages) if one["role"] == "assistant" and _asked(messages[:i])]
    replies = [i for i in replies if i >= first] if loss != "all_tokens" else replies
    replies = replies[-1:] if loss == "last_turn" else replies
    if loss == "all_tokens" and not all(map(learned, messages)):
        raise ConfigError(
            f"{place + ': ' if place else ''}a reply has weight 0, but all tokens are learned: leave the weight out, "
            "or use regime sft with data.loss: all_turns"
        )
    replies = [i for i in replies if learned(messages[i])]
    if not replies:
        return []
    chains = list(_chains(turn(tokenizer, messages, tools, i, place) for i in replies))
    if loss == "all_tokens":
        return [_all_but_results(chains, messages, place)]
    rows = [_on_replies(chain) for chain in chains]
    if not has_markers(tokenizer):
        return rows
    ends = [chain[-1].index + 1 for chain in chains]
    return [
        _within_markers(row, chain, _marked(tokenizer, messages[:end], tools))
        for row, chain, end in zip(rows, chains, ends, strict=True)
    ]


def has_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks what is generated."""
    return bool(MARKERS.search(str(tokenizer.chat_template)))


def turn(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message], index: int, place: str
) -> Turn:
    """Return the prompt and the answer of the reply at `index`."""
    question = question_of(messages[:index], tools, place)
    prompt = prompt_ids(tokenizer, question)
    return Turn(index, prompt, answer_ids(tokenizer, question, messages[index], prompt=prompt))


def _asked(messages: Sequence[Message]) -> bool:
    return any(one["role"] in ("user", "tool") for one in messages)


def _chains(turns: Iterator[Turn]) -> Iterator[list[Turn]]:
    """Yield turns of which each prompt begins with the prompt and the answer of the one before."""
    chain: list[Turn] = []
    for one in turns:
        before = chain[-1].prompt + chain[-1].answer if chain else []
        if one.prompt[: len(before)] != before:
            yield chain
            chain = []
        chain.append(one)
    yield chain


def _on_replies(chain: Sequence[Turn]) -> Labelled:
    labels: list[int] = []
    for one in chain:
        labels += [IGNORED] * (len(one.prompt) - len(labels)) + one.answer
    return Labelled(chain[-1].prompt + chain[-1].answer, labels)


def _all_but_results(chains: Sequence[Sequence[Turn]], messages: Sequence[Message], place: str) -> Labelled:
    """Return the last row with the loss on all tokens but what is written for tool results, between two replies."""
    row, before = _on_replies(chains[-1]), -1
    labels: list[int] = []
    results = [i for i, one in enumerate(messages) if one["role"] == "tool"]
    if results and len(chains) > 1:
        raise RefusedRow(
            f"{place + ': ' if place else ''}the chat template rewrites earlier turns, so the tokens of tool results "
            "are not known: use regime sft with data.loss: all_turns"
        )
    for one in chains[-1]:
        between = row.ids[len(labels) : len(one.prompt)]
        result = any(before < i < one.index for i in results)
        labels += ([IGNORED] * len(between) if result else between) + one.answer
        before = one.index
    return Labelled(row.ids, labels)


def _marked(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message]) -> Any:
    """Return ids and marks (1 inside of a marker) of the whole conversation, as transformers reads the markers."""
    turns: Any = messages
    given: Any = list(tools) or None
    found: Any = tokenizer.apply_chat_template(turns, tools=given, return_dict=True, return_assistant_tokens_mask=True)
    return found["input_ids"], found["assistant_masks"]


def _within_markers(row: Labelled, chain: Sequence[Turn], marked: tuple[Sequence[int], Sequence[int]]) -> Labelled:
    """Take tokens outside of the markers out of the loss, but no end of a reply.

    The row stays as it is if nothing is marked, or if its tokens are others than those of the whole conversation.
    """
    ids, marks = marked
    if not any(marks) or list(ids[: len(row.ids)]) != row.ids:
        return row
    ends = {len(one.prompt) + len(one.answer) - 1 for one in chain}
    kept = [label if marks[i] or i in ends else IGNORED for i, label in enumerate(row.labels)]
    return Labelled(row.ids, kept)

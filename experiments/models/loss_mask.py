"""Token ids and labels of a conversation: which tokens carry the loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError, RefusedRow
from experiments.models.conversation import Message, learned, question_of
from experiments.models.tokens import IGNORED, answer_ids, answer_places, prompt_ids
from experiments.models.turns import marked

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
    return [
        _within_markers(tokenizer, row, chain, messages[: chain[-1].index + 1], tools)
        for row, chain in zip(rows, chains, strict=True)
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


def _within_markers(
    tokenizer: PreTrainedTokenizerBase,
    row: Labelled,
    chain: Sequence[Turn],
    messages: Sequence[Message],
    tools: Sequence[Message],
) -> Labelled:
    """Take tokens outside of the markers out of the loss, but no end of a reply.

    A token that is partly inside stays. messages: those of the row. The row stays as it is if nothing is marked.
    """
    spans = marked(tokenizer, messages, tools)
    labels = list(row.labels)
    for one in chain if spans else ():
        question = question_of(messages[: one.index], tools)
        places = answer_places(tokenizer, question, messages[one.index], one.prompt)
        for i, (start, stop) in enumerate(places[: len(one.answer) - 1], start=len(one.prompt)):
            if not any(start < end and max(stop, start + 1) > begin for begin, end in spans):
                labels[i] = IGNORED
    return Labelled(row.ids, labels)

"""Turn questions, replies and texts into token ids: the same way for training, generation and the kept tasks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.models.conversation import Message, plain, turn_of
from experiments.models.turns import THOUGHT_MARKS, as_words, called, prompt_text, turns, written
from experiments.models.words import BREAK, encoded, placed

IGNORED = -100  # label of tokens that carry no loss
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of the beginning of a text, with the tokenizer's start of text (bos) if it has one.

    A text that begins with it, as a rendered chat does, gets no second one. Some tokenizers add an end (eos) after
    every text too. It is left out: more may follow.
    """
    first, *rest = text.split(BREAK, 1)
    ids, (start, end) = list(tokenizer(first, verbose=False)["input_ids"]), added(tokenizer)
    ids = ids[: len(ids) - len(end)]
    ids = ids[len(start) :] if ids[len(start) : 2 * len(start)] == start else ids
    return [*ids, *encoded(tokenizer, BREAK + rest[0])] if rest else ids


def added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer adds before and after every text."""
    own, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    return whole[:start], whole[start + len(own) :]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the prompt of a question: the chat template with its generation prompt.

    Without a chat template (base models) it is `Question: ...\\nAnswer:`.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, as_words(tokenizer, plain(question)))
    return _ids(tokenizer, prompt_text(tokenizer, question))


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    reply: str | Message,
    ended: bool = True,
    prompt: Sequence[int] | None = None,
) -> list[int]:
    """Return what a model is trained to write after `prompt_ids`: the template's own text of the reply's turn.

    ended: with the end of turn, after which nothing of the template follows; False for a reply that was cut off. Calls
    of tools end with the token that the template writes after them. prompt: `prompt_ids`, if they are known.
    """
    end = end_of_turn(tokenizer)
    if not tokenizer.chat_template:
        asked, said = as_words(tokenizer, [plain(question), f" {turn_of(reply)['content']}"])
        return continuation_ids(tokenizer, asked, said, before=prompt) + [end] * ended
    asked = prompt_text(tokenizer, question)
    if call := called(tokenizer, question, reply):
        return continuation_ids(tokenizer, asked, call, add_special_tokens=False, before=prompt)
    text = written(tokenizer, question, reply) + _closing(tokenizer, end) * ended
    ids = continuation_ids(tokenizer, asked, text, add_special_tokens=False, before=prompt)
    return ids + [end] * (ended and ids[-1:] != [end])


def answer_places(
    tokenizer: PreTrainedTokenizerBase, question: str, reply: str | Message, prompt: Sequence[int]
) -> list[tuple[int, int]]:
    """Return where the chat has the tokens of `answer_ids`: first character and after the last, from the chat's start.

    The end of turn is left out if the template does not write it. prompt: `prompt_ids`.
    """
    asked, call = prompt_text(tokenizer, question), called(tokenizer, question, reply)
    text = call or written(tokenizer, question, reply) + _closing(tokenizer, end_of_turn(tokenizer))
    whole = placed(tokenizer, asked + text)
    if len(whole) > len(prompt) and [token for token, *_ in whole[: len(prompt)]] == list(prompt):
        return [(start, stop) for _, start, stop in whole[len(prompt) :]]
    before = len(asked) - len(BREAK)
    return [(start + before, stop + before) for _, start, stop in placed(tokenizer, BREAK + text)]


def opened_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the prompt of a question and what the template writes before a reply: only the reply itself is missing."""
    if not tokenizer.chat_template:
        return prompt_ids(tokenizer, question)
    return _ids(tokenizer, prompt_text(tokenizer, question) + turns(tokenizer).opening)


def reply_ids(tokenizer: PreTrainedTokenizerBase, question: str, reply: str) -> list[int]:
    """Return the tokens of a reply after `opened_ids`, without the end of turn."""
    if not tokenizer.chat_template:
        return answer_ids(tokenizer, question, reply, ended=False)
    opening = turns(tokenizer).opening
    text = written(tokenizer, question, reply).removeprefix(opening)
    return continuation_ids(tokenizer, prompt_text(tokenizer, question) + opening, text, add_special_tokens=False)


def reply_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a reply that a model wrote, without what the template has around replies (a think block)."""
    opening, closing = _around(tokenizer) if tokenizer.chat_template else ([], "")
    marks = [token for token in opening if token in tokenizer.added_tokens_decoder]
    if marks and marks[-1] in ids:
        ids = ids[len(ids) - list(ids)[::-1].index(marks[-1]) :]
    text = _decoded(tokenizer, ids)
    if opening:
        text = text.removeprefix(str(tokenizer.decode(opening, skip_special_tokens=True))).lstrip()
    return text.rstrip().removesuffix(closing) if closing else text


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of ids without special tokens, but for those around thoughts, which graders leave out."""
    around = {*THOUGHT_MARKS, *THOUGHT_MARKS.values()}
    marks = {
        i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special and str(token) in around
    }
    parts = [list(part) for _, part in itertools.groupby(ids, lambda i: i in marks and i)]
    texts = (marks.get(part[0]) or str(tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
    return "".join(texts)


def cut_in_thought(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a reply begins what the template has before replies (a think block) and never ends it."""
    opening = _around(tokenizer)[0] if tokenizer.chat_template else []
    marks = [token for token in opening if token in tokenizer.added_tokens_decoder]
    return bool(marks) and marks[0] in ids and marks[-1] not in ids


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase,
    prefix: str,
    text: str,
    add_special_tokens: bool = True,
    before: Sequence[int] | None = None,
) -> list[int]:
    """Return the tokens of `text` after `prefix`. before: those of the prefix, if they are known.

    Both are encoded together if the boundary is between two tokens. Else the text is read after a newline: some
    tokenizers add a space to a text on its own.
    """
    encode = text_ids if add_special_tokens else _ids
    before, whole = encode(tokenizer, prefix) if before is None else list(before), encode(tokenizer, prefix + text)
    if len(whole) > len(before) and whole[: len(before)] == before:
        return whole[len(before) :]
    return _ids(tokenizer, BREAK + text)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a reply: the special one that the chat template writes after it, else the eos.

    Added tokens that are not special (a newline) end nothing. Raises ConfigError if there is none.
    """
    end = _end_of_turn(tokenizer, str(tokenizer.chat_template), len(tokenizer)) if tokenizer.chat_template else None
    if end is not None:
        return end
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no token that ends a reply: set its eos_token")
    return int(tokenizer.eos_token_id)


def user_opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the chat template writes before a user's words: a model continues them with a question."""
    marker = "@@question@@"
    text = str(tokenizer.apply_chat_template([{"role": "user", "content": marker}], tokenize=False))
    return _ids(tokenizer, text.partition(marker)[0])


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token between documents: one that is known from pretraining, else the end of sequence (eos).

    Chat models often have the end of turn as eos. Raises ConfigError if there is none.
    """
    known = tokenizer.get_vocab()
    for token in DOCUMENT_ENDS:
        if token in known:
            return int(known[token])
    return end_of_turn(tokenizer) if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token, or the end of turn if there is none. Padding is masked, so any token will do."""
    return end_of_turn(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Pad rows of different lengths to one int64 tensor (rows, longest)."""
    longest = max(len(row) for row in rows)
    filled = [[value] * (longest - len(r)) + list(r) if left else list(r) + [value] * (longest - len(r)) for r in rows]
    return torch.tensor(filled, dtype=torch.int64)


def asked_key(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str] = ()) -> list[Any]:
    """Return all of the tokenizer that decides the replies to some questions, as plain JSON: for the key of a cache.

    These are the ids of the prompts, the end of a reply, which tokens are no text, and what is added to every text.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    return [prompts, end_of_turn(tokenizer), sorted(tokenizer.all_special_ids), *added(tokenizer)]


def longest_chat(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], reply: int) -> int:
    """Return the number of tokens of the longest prompt and a reply of `reply` tokens; 0 without questions."""
    return max((len(prompt_ids(tokenizer, question)) + reply for question in questions), default=0)


def drop_added_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer add no end (eos) after a text any more, for code that encodes with it directly."""
    start, end = added(tokenizer)
    if not end:
        return
    names = [str(token) for token in tokenizer.convert_ids_to_tokens(start)]
    template = " ".join([*names, "$A"])
    tokens = list(zip(names, start, strict=True))
    backend: Any = tokenizer
    backend.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)


@functools.lru_cache(maxsize=8)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str, size: int) -> int | None:
    """Return the special token after a reply. template, size: of the vocabulary, to look again once they change."""
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    return next((token for token in _ids(tokenizer, turns(tokenizer).tail) if token in special), None)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return encoded(tokenizer, text)


def _closing(tokenizer: PreTrainedTokenizerBase, end: int) -> str:
    """Return what the template writes after a reply, up to the end of turn; without one, all but blanks."""
    tail, token = turns(tokenizer).tail, str(tokenizer.convert_ids_to_tokens(end))
    before, found, _ = tail.partition(token)
    return before + found if found else tail.rstrip()


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    """Return the tokens of the template's opening of a reply, and what can be read of its closing."""
    closing = _ids(tokenizer, _closing(tokenizer, end_of_turn(tokenizer)))
    return _ids(tokenizer, turns(tokenizer).opening), str(tokenizer.decode(closing, skip_special_tokens=True)).strip()

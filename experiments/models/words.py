"""Read special tokens in the words of a chat as text: a question about <|im_end|> must not end its own turn.

A tokenizer finds its special tokens anywhere in a text, also in what a user or a file says. Chats are rendered as one
text, so BREAK is put into such tokens before, and the text is encoded in the parts between.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

One = TypeVar("One")
BREAK = "\ufdd0"  # a noncharacter of Unicode, which no text has


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the special tokens of a tokenizer. Added ones that are not special (<think>) are meant in any text."""
    return _special(tokenizer, len(tokenizer))


def found(value: Any, tokens: Collection[str]) -> set[str]:
    """Return which of the tokens the texts of a value hold: a text, or messages as chat templates read them."""
    if isinstance(value, str):
        return {token for token in tokens if token in value}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return set().union(*(found(part, tokens) for part in parts))


def spelled(value: Any, tokens: Collection[str]) -> Any:
    """Return the value with BREAK after the first letter of each of the tokens in its texts."""
    if isinstance(value, str):
        pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
        while tokens and pattern.search(value):  # again: a token may hold another
            value = pattern.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", value)
        return value
    if isinstance(value, Mapping):
        return {key: spelled(part, tokens) for key, part in value.items()}
    return [spelled(part, tokens) for part in value] if isinstance(value, list | tuple) else value


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text as it is, with nothing around it; parts between BREAKs on their own."""
    return [token for tokens, _ in _parts(text, lambda part: _ids(tokenizer, part)) for token in tokens]


def placed(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int, int]]:
    """Return each token of `encoded` with the places in the text of its first character and after its last."""
    found = _parts(text, lambda part: _placed(tokenizer, part))
    return [(token, start + before, stop + before) for tokens, before in found for token, start, stop in tokens]


def _parts(text: str, read: Callable[[str], list[One]]) -> Iterator[tuple[list[One], int]]:
    """Yield the tokens of each part between BREAKs, and the characters before the text in which it was read.

    Within a text a part is read after a newline: on its own, some tokenizers would add a space before it.
    """
    first, *rest = text.split(BREAK)
    yield read(first), 0
    start = len(first) + 1
    for part in rest:
        line, whole = read("\n"), read(f"\n{part}")
        fits = whole[: len(line)] == line
        yield (whole[len(line) :], start - 1) if fits else (read(part), start)
        start += len(part) + 1


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _placed(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int, int]]:
    read: Any = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return [(token, *place) for token, place in zip(read["input_ids"], read["offset_mapping"], strict=True)]


@functools.lru_cache(maxsize=8)
def _special(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[str]:
    """size: of the vocabulary, to look again once it has grown."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(token for token in added | set(tokenizer.all_special_tokens) if len(token) > 1)

"""Turn questions, replies and texts into token ids: the same way for training, generation and the kept tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError

IGNORED = -100  # label of tokens that carry no loss
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Return the prompt of a question: the chat template with its generation prompt.

    Without a chat template (base models) it is `Question: ...\\nAnswer:`.
    """
    text, plain = _prompt(tokenizer, question)
    return list(tokenizer(text, add_special_tokens=plain)["input_ids"])


def reply_ids(tokenizer: PreTrainedTokenizerBase, question: str, reply: str) -> list[int]:
    """Return the tokens of a reply after `prompt_ids`, without the end of turn."""
    text, plain = _prompt(tokenizer, question)
    return continuation_ids(tokenizer, text, f" {reply}" if plain else reply, add_special_tokens=plain)


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, add_special_tokens: bool = True
) -> list[int]:
    """Return the tokens of `text` after `prefix`.

    Both are encoded together if the boundary is between two tokens: some tokenizers add a space to a text on its own.
    """
    before = list(tokenizer(prefix, add_special_tokens=add_special_tokens)["input_ids"])
    whole = list(tokenizer(prefix + text, add_special_tokens=add_special_tokens)["input_ids"])
    if len(whole) > len(before) and whole[: len(before)] == before:
        return whole[len(before) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a reply: the one that the chat template writes after it, else the end of text.

    Raises ConfigError if there is none.
    """
    if tokenizer.chat_template:
        marker = "@@reply@@"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
        tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(marker)[2]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no token that ends a reply: set its eos_token")
    return int(tokenizer.eos_token_id)


def user_opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the chat template writes before a user's words: a model continues them with a question."""
    marker = "@@question@@"
    text = str(tokenizer.apply_chat_template([{"role": "user", "content": marker}], tokenize=False))
    return list(tokenizer(text.partition(marker)[0], add_special_tokens=False)["input_ids"])


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


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, bool]:
    """Return the prompt's text and whether it is plain; then the tokenizer adds its own start of text."""
    if not tokenizer.chat_template:
        return f"Question: {question}\nAnswer:", True
    turns = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)), False

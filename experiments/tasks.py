"""The new task: items of a procedural generator, how they are written as token ids, and batches to train on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.config import ConfigError, TaskConfig

IGNORED = -100  # label of tokens that carry no loss
NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\d[\d,]*(?:\.\d+)?")
Scorer = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True)
class Item:
    """One question and its answer. metadata: what the generator's verifier wants besides."""

    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def id(self) -> str:
        """Twelve hex digits of the question's SHA-256: the same item has the same id in every run."""
        return hashlib.sha256(self.question.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class NewTask:
    """Items to learn from and items to measure on; no question is in both."""

    name: str
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    scorer: Scorer = field(compare=False, repr=False)

    @functools.cached_property
    def numeric(self) -> bool:
        """Whether every answer is a number, so that a number is what is read out of a reply."""
        return all(NUMBER.fullmatch(item.answer.strip()) for item in self.test)

    def correct(self, answer: str | None, item: Item) -> bool:
        """Full marks of the generator's own verifier; None (nothing could be read) is wrong."""
        if answer is None:
            return False
        entry = {"question": item.question, "answer": item.answer, "metadata": dict(item.metadata)}
        return self.scorer(answer, entry) >= 1.0


def new_task(config: TaskConfig, train_items: int, test_items: int, seed: int) -> NewTask:
    """Draw distinct items from the reasoning_gym generator `config.name`.

    The test items are drawn first and are therefore the same for any `train_items`; a question that is among them
    is left out of the training items. Raises ConfigError for an unknown name, parameters that the generator refuses,
    and a generator that has too few distinct questions.
    """
    generator = _generators(config)
    test = _draw(generator("test", seed), test_items, set(), config.name, "test")
    train = _draw(generator("train", seed), train_items, {item.question for item in test}, config.name, "training")
    return NewTask(config.name, tuple(train), tuple(test), generator("test", seed).score_answer)


def _generators(config: TaskConfig) -> Callable[[str, int], Any]:
    from reasoning_gym.factory import DATASETS  # seconds to import

    if config.name not in DATASETS:
        raise ConfigError(f"task.name: {unknown_name('task', config.name, sorted(DATASETS))}")
    dataset_class, config_class = DATASETS[config.name]
    own = ("seed", "size")
    known = [f.name for f in dataclasses.fields(config_class) if f.name not in own]
    wrong = [unknown_name("parameter", key, known) for key in config.params if key not in known]
    if wrong:
        raise ConfigError(f"task.params of {config.name}: " + "; ".join(wrong))

    def generator(part: str, seed: int) -> Any:
        # Generators add the index to the seed, so neighbouring seeds share items: these lie far apart.
        start = random.Random(f"{part} {seed}").randrange(2**30)
        try:
            settings = config_class(**config.params, seed=start, size=2**30)
            settings.validate()
            return dataset_class(settings)
        except (AssertionError, TypeError, ValueError, KeyError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(
                f"task.params of {config.name}: {config.params} is refused by the generator: {reason}"
            ) from error

    return generator


def _draw(generator: Any, count: int, taken: set[str], name: str, part: str) -> list[Item]:
    """`count` items with distinct questions outside `taken`; gives up after 20 tries for each and 1000 more."""
    items: list[Item] = []
    seen = set(taken)
    for index in range(20 * count + 1000):
        if len(items) == count:
            break
        entry = generator[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            items.append(Item(entry["question"], str(entry["answer"]), entry["metadata"]))
    if len(items) < count:
        raise ConfigError(
            f"task {name} has too few distinct questions: {count} {part} items were asked for, but only {len(items)} "
            "were found beside the others. Widen task.params, or ask for fewer steps or evaluation.new_items"
        )
    return items


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """What the model reads before it replies: the chat template with its generation prompt.

    Without a chat template (base models) it is `Question: ...\\nAnswer:`. Training, generation and the kept tasks all
    go through here.
    """
    text, plain = _prompt(tokenizer, question)
    return list(tokenizer(text, add_special_tokens=plain)["input_ids"])


def reply_ids(tokenizer: PreTrainedTokenizerBase, question: str, reply: str) -> list[int]:
    """The tokens of a reply behind `prompt_ids`, without the end of turn."""
    text, plain = _prompt(tokenizer, question)
    return continuation_ids(tokenizer, text, f" {reply}" if plain else reply, add_special_tokens=plain)


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, add_special_tokens: bool = True
) -> list[int]:
    """The tokens of `text` behind `prefix`. Some tokenizers add a space to a text on its own, so both are encoded
    together where the boundary lies between tokens."""
    before = list(tokenizer(prefix, add_special_tokens=add_special_tokens)["input_ids"])
    whole = list(tokenizer(prefix + text, add_special_tokens=add_special_tokens)["input_ids"])
    if len(whole) > len(before) and whole[: len(before)] == before:
        return whole[len(before) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a reply: what the chat template writes behind it, else the end of text."""
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


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do, since padding is masked; the end of turn where the tokenizer names none."""
    return end_of_turn(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


class ChatDataset(Dataset[dict[str, list[int]]]):
    """Encoded items in an order fixed by the seed: read it in sequence, and every arm sees the same batches.

    An item is `input_ids` (prompt, answer, end of turn) and `labels`, which are -100 on the prompt: the loss is on the
    answer and the end of turn alone.
    """

    def __init__(self, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.items = list(items)
        random.Random(f"order {seed}").shuffle(self.items)
        end = end_of_turn(tokenizer)
        self.encoded = [_encode(item, tokenizer, end) for item in self.items]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.encoded[index]


def _encode(item: Item, tokenizer: PreTrainedTokenizerBase, end: int) -> dict[str, list[int]]:
    prompt = prompt_ids(tokenizer, item.question)
    answer = [*reply_ids(tokenizer, item.question, item.answer), end]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


class Collator:
    """Right-pads to the longest of the batch: input_ids, attention_mask and labels, each (batch, seq) int64."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = pad_id(tokenizer)

    def __call__(self, batch: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        return {
            "input_ids": pad([item["input_ids"] for item in batch], self.pad),
            "attention_mask": pad([[1] * len(item["input_ids"]) for item in batch], 0),
            "labels": pad([item["labels"] for item in batch], IGNORED),
        }


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Rows of different lengths as one int64 tensor (rows, longest)."""
    longest = max(len(row) for row in rows)
    filled = [[value] * (longest - len(r)) + list(r) if left else list(r) + [value] * (longest - len(r)) for r in rows]
    return torch.tensor(filled, dtype=torch.int64)


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, bool]:
    """The prompt's text, and whether it is the plain one (then the tokenizer adds its own start of text)."""
    if not tokenizer.chat_template:
        return f"Question: {question}\nAnswer:", True
    turns = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)), False

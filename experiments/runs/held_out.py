"""Prepare what is measured of the new data: held-out questions that can be asked, each once, and short documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import text_id
from experiments.data.encoding import Encoder
from experiments.data.items import NewTask, NewText
from experiments.data.source import Source


def asked(encoder: Encoder, source: Source, task: NewTask | NewText) -> tuple[NewTask | NewText, list[str]]:
    """Leave out held-out questions that the chat template refuses, if the source passes over bad rows; and say so.

    Raises ConfigError if none is left.
    """
    if not source.skips or isinstance(task, NewText):
        return task, []
    why = {item.id: encoder.refusal(item) for item in task.test}
    left = tuple(item for item in task.test if not why[item.id])
    reasons = [reason for reason in why.values() if reason]
    if not reasons:
        return task, []
    said = f"source {source.label}: {len(reasons)} of {len(why)} held-out questions are not measured ({reasons[0]})"
    if not left:
        raise ConfigError(said)
    return dataclasses.replace(task, test=left), [said]


def distinct(tasks: Sequence[NewTask | NewText]) -> tuple[NewTask | NewText, ...]:
    """Remove items that occur twice. Raises ConfigError if nothing of a task is left.

    Two sources may ask the same question under one name, and documents with the same start are equal once cut.
    """
    seen: set[tuple[str, str]] = set()

    def first(name: str, key: str) -> bool:
        known = (name, key) in seen
        seen.add((name, key))
        return not known

    found: list[NewTask | NewText] = []
    for task in tasks:
        if isinstance(task, NewTask):
            one: NewTask | NewText = dataclasses.replace(
                task, test=tuple(i for i in task.test if first(task.name, i.id))
            )
        else:
            kept = tuple(text for text in task.documents if first(task.name, text_id(text)))
            one = dataclasses.replace(task, documents=kept)
        if not (one.test if isinstance(one, NewTask) else one.documents):
            raise ConfigError(
                f"data.new: every held-out item of {task.name} is in another source of that name too: leave one out"
            )
        found.append(one)
    return tuple(found)


def cut_documents(tokenizer: PreTrainedTokenizerBase, task: NewTask | NewText, tokens: int) -> NewTask | NewText:
    """Cut held-out documents to their first tokens: some are books. Questions stay as they are."""
    if isinstance(task, NewTask):
        return task
    cut = tuple(_begin(tokenizer, document, tokens) for document in task.documents)
    return dataclasses.replace(task, documents=cut)


def _begin(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """Return the first `tokens` tokens of a text as text."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens]))

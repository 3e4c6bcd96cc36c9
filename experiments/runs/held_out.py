"""Prepare what is measured of the new data: held-out questions that can be asked, each once, and short documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import text_id
from experiments.data.code_grader import Code
from experiments.data.encoding import Encoder
from experiments.data.grader import Contains, Exact, shortened
from experiments.data.isolated_graders import Regex
from experiments.data.items import Example, Item, NewTask, NewText
from experiments.data.matching import normal
from experiments.data.source import Source, ids_of
from experiments.data.stored import Stored
from experiments.data.tested import Measured

LONG = 20  # words of an answer
OWN = 20  # answers that are graded as replies: code may run for seconds


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


def remarks(source: Source, task: NewTask | NewText) -> list[str]:
    """Say what the measured answers of a source may hide, one line each: other answers, and how a grader reads them."""
    if not isinstance(source, Measured):
        return []
    if isinstance(task, NewText):
        return [f"source {source.label}: {line}" for line in _some(source, task, len(task.documents))]
    rows = source.test_examples if source.test else () if source.streamed else source.stored()
    said = [*_some(source, task, len(task.test)), *_several(rows, task), *_long(source, task), *_own(source, task)]
    said += source.grader.remarks(task.test) if source.grader else ()
    return [f"source {source.label}: {line}" for line in said]


def _some(source: Measured, task: NewTask | NewText, measured: int) -> list[str]:
    """Say if a test set has more rows than are measured."""
    whole = len(task.further)
    if source.test is None or measured >= whole:
        return []
    return [f"{measured:,} of {whole:,} rows of the test set are measured, drawn by the seed (evaluation.new_items)"]


def _long(source: Measured, task: NewTask) -> list[str]:
    """Say if most answers are so long that hardly a reply equals one: a gain of 0 would say nothing."""
    found = [item.answer for item in task.test if len(item.answer.split()) > LONG]
    if not isinstance(source.grader, Exact | Contains | None) or 2 * len(found) <= len(task.test):
        return []
    must = "have" if isinstance(source.grader, Contains) else "be"
    return [
        f"{len(found):,} of {len(task.test):,} measured answers have more than {LONG} words, such as "
        f"{shortened(found[0])!r}, and a reply must {must} all of them to be right. Name a grader that reads a part of "
        "them, or likelihood"
    ]


def _own(source: Measured, task: NewTask) -> list[str]:
    """Say if replies that are the data's own answers are wrong: so is a model that has learned such answers."""
    first = task.test[:OWN] if isinstance(source.grader, Regex | Code) else ()  # others say that they are right
    wrong = [item.reply for item in first if not task.correct(item.reply, item)]
    if not wrong:
        return []
    return [
        f"the data's own answer is a wrong reply to {len(wrong)} of the first {len(first)} measured questions, such as "
        f"{shortened(wrong[0])!r}: a model that learns such answers is wrong too"
    ]


def _several(rows: Iterable[Example], task: NewTask) -> list[str]:
    """Say how many measured questions have other answers in the data: a reply is compared with the first alone."""
    first = {item.id: item for item in task.test}
    if isinstance(rows, Stored):
        table = rows
        rows = (table[number] for number, one in enumerate(ids_of(table)) if one in first)
    other = {
        row.id: row.answer
        for row in rows
        if isinstance(row, Item) and row.id in first and normal(row.answer) != normal(first[row.id].answer)
    }
    if not other:
        return []
    one = first[next(iter(other))]
    return [
        f"{len(other):,} of {len(first):,} measured questions have several answers in the data, such as "
        f"{str(one.question)[:60]!r} ({one.answer[:40]!r}, {other[one.id][:40]!r}): only the first counts as right"
    ]


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


def said_cut(source: Source, whole: NewTask | NewText, cut: NewTask | NewText, tokens: int) -> list[str]:
    """Say how many documents `cut_documents` has cut."""
    if isinstance(whole, NewTask) or isinstance(cut, NewTask):
        return []
    count = sum(one != other for one, other in zip(whole.documents, cut.documents, strict=True))
    if not count:
        return []
    of = f"{count:,} of {len(whole.documents):,} measured texts are longer than {tokens:,} tokens"
    return [f"source {source.label}: {of}, and only their beginnings are measured"]


def _begin(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """Return the first `tokens` tokens of a text as text."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens]))

"""Kept tasks: facts and grammar the base model knows before training, as multiple choice.

Four options, or two where there are only two (`agreement`). Which options stand beside the answer, and in which order,
depends on the seed and the item alone: asking for more items or other tasks changes none of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from experiments.common.errors import ConfigError
from experiments.evaluation.kept_tasks.countries import capitals, continents, currencies
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.kept_tasks.words import agreement, past_tense, plurals

OPTIONS = 4


@dataclass(frozen=True)
class Probe:
    """One question in two forms; answer is the index of the right option.

    question_plain: a stem that a space and an option complete. question_chat: a user's turn; reply: how an option is
    written as the assistant's, with a full stop where the bare word would be an unlikely reply (`They {}.`). reworded:
    plain and chat in other words; None for `agreement`, whose minimal pairs ask nothing.
    """

    task: str
    id: str
    question_plain: str
    question_chat: str
    reply: str
    options: tuple[str, ...]
    answer: int
    reworded: tuple[str, str] | None = None


def kept_items(tasks: Sequence[str], per_task: int | Literal["all"], seed: int) -> list[Probe]:
    """`per_task` probes of each kept task: the largest countries, the first words of each list; or all there are.

    Raises ConfigError where a task has fewer.
    """
    return [probe for task in tasks for probe in _probes(task, PROBES[task](), per_task, seed)]


def reworded(probes: Sequence[Probe]) -> list[Probe]:
    """The same probes in their second wording, options and places as they are; those that have none are left out."""
    pairs = ((probe, probe.reworded) for probe in probes)
    return [replace(p, question_plain=words[0], question_chat=words[1]) for p, words in pairs if words]


def _probes(task: str, questions: Sequence[Question], count: int | Literal["all"], seed: int) -> list[Probe]:
    count = len(questions) if count == "all" else count
    if count > len(questions):
        raise ConfigError(
            f"evaluation.kept_items={count}, but the kept task {task!r} has only {len(questions)} items: ask for "
            "fewer, or write all"
        )
    return [_draw(task, question, random.Random(f"{seed} {task} {question.id}")) for question in questions[:count]]


def _draw(task: str, question: Question, rng: random.Random) -> Probe:
    options = [question.right, *rng.sample(question.wrong, min(OPTIONS - 1, len(question.wrong)))]
    rng.shuffle(options)
    answer = options.index(question.right)
    wording = question.plain, question.chat, question.reply
    return Probe(task, question.id, *wording, tuple(options), answer, question.reworded)


KEPT_TASKS = ("capitals", "continents", "past tense", "plurals")  # the default: four times two forms
PROBES: dict[str, Callable[[], list[Question]]] = {
    "capitals": capitals,
    "continents": continents,
    "currencies": currencies,
    "past tense": past_tense,
    "plurals": plurals,
    "agreement": agreement,
}

"""The kept tasks: what the base model knows or can do before training, as multiple choice.

A question has four options, or two if there are only two (`agreement`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from experiments.common.errors import ConfigError
from experiments.evaluation.kept_tasks.countries import capitals, continents, currencies
from experiments.evaluation.kept_tasks.question import Question, Template
from experiments.evaluation.kept_tasks.reasoning import categories, reading, sequences
from experiments.evaluation.kept_tasks.words import agreement, past_tense, plurals

DEFAULT_TASKS = ("capitals", "continents", "past tense", "plurals")
KEPT_TASKS: dict[str, Callable[[], list[Template]]] = {
    "capitals": capitals,
    "continents": continents,
    "currencies": currencies,
    "past tense": past_tense,
    "plurals": plurals,
    "agreement": agreement,
    "reading": reading,
    "sequences": sequences,
    "categories": categories,
}


def draw_questions(tasks: Sequence[str], per_task: int | Literal["all"], seed: int) -> list[Question]:
    """Return `per_task` questions of each task, or all: the largest countries, the first words of each list.

    Raises ConfigError if a task has fewer.
    """
    return [question for task in tasks for question in _draw(task, KEPT_TASKS[task](), per_task, seed)]


def reworded(questions: Sequence[Question]) -> list[Question]:
    """Return the questions in their second wording, without those that have none."""
    return [again for question in questions if (again := question.reworded())]


def _draw(task: str, templates: Sequence[Template], count: int | Literal["all"], seed: int) -> list[Question]:
    count = len(templates) if count == "all" else count
    if count > len(templates):
        raise ConfigError(
            f"evaluation.suites.kept.items={count}, but the kept task {task!r} has only {len(templates)} items: ask "
            "for fewer, or write all"
        )
    return [Question.draw(task, template, seed) for template in templates[:count]]

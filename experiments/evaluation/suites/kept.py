"""Suite `kept`: what the base model knew before training, as multiple choice in two forms, and in free replies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from transformers import PreTrainedModel

from experiments.common.hashing import text_id
from experiments.common.section import nearest
from experiments.data.files import TABLES
from experiments.data.items import NewTask
from experiments.data.spelling import bare
from experiments.data.tables import kind
from experiments.evaluation.choices import as_choice, likeliest, named_first
from experiments.evaluation.kept_tasks.own import KeptFile, as_question
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, KEPT_TASKS, draw_questions, reworded
from experiments.evaluation.multiple_choice import score_options
from experiments.evaluation.replies import GRADING, asking, grading_of, reply_records, room_for
from experiments.evaluation.suite import Ask, Suite, SuiteSettings
from experiments.models.sharing import Progress
from experiments.models.tokens import asked_key, longest_chat
from experiments.records import Record

FORMS = ("plain", "chat")
REPLY = 16  # tokens of a free reply


class KeptSuite(Suite):
    """Each question as the start of a sentence and as a chat; the option with the highest likelihood is the choice.

    With `generated` each chat is also answered by a free reply (form `generate`, no options shown). It is correct if it
    names the answer before any other option, and not parsed if it names none. Questions of a file without options are
    answered by a greedy reply alone, which a grader reads.
    """

    name = "kept"
    version = 2

    class Settings(SuiteSettings):
        """Which kept tasks are measured, on how many questions."""

        tasks: tuple[str | KeptFile, ...] = Field(
            DEFAULT_TASKS, min_length=1, description="names of kept tasks, and files of your own questions"
        )
        items: int | Literal["all"] = Field(100, description="questions of each kept task, 4 or more; or all")
        generated: bool = Field(False, description="answer the chats in free replies too: a third form")
        aa_floor: bool = Field(True, description="ask the base model once more in other words, for the A/A floor")

        @property
        def has_floor(self) -> bool:
            return self.aa_floor and set(self.tasks) != {"agreement"}  # the only task with a single wording

        @property
        def names(self) -> tuple[str, ...]:
            return tuple(one.task if isinstance(one, KeptFile) else one for one in self.tasks)

        @property
        def files(self) -> tuple[KeptFile, ...]:
            return tuple(one for one in self.tasks if isinstance(one, KeptFile))

        @property
        def has_options(self) -> bool:
            """Whether some questions have options. Reads files for that."""
            return any(isinstance(one, str) or one.has_options for one in self.tasks)

        @property
        def idle(self) -> str:
            """Say that `generated` has no effect, if no question has options; else nothing."""
            if not self.generated or self.has_options:
                return ""
            return (
                "kept.generated has no effect: replies are read for options, which no kept task has; leave it out (a "
                "file without a column options is answered by replies anyway)"
            )

        @field_validator("items", mode="before")
        @classmethod
        def _number_or_all(cls, value: Any) -> Any:
            if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 4):
                raise ValueError("must be a number of 4 or more, or all")
            return value

        @field_validator("tasks", mode="before")
        @classmethod
        def _paths(cls, value: Any) -> Any:
            """Read a text that ends as a table does as the path of a file."""
            if not isinstance(value, list | tuple):
                return value
            return [{"path": one} if isinstance(one, str) and kind(Path(one)) in TABLES else one for one in value]

        @field_validator("tasks")
        @classmethod
        def _known(cls, value: tuple[str | KeptFile, ...]) -> tuple[str | KeptFile, ...]:
            for name in value:
                if isinstance(name, str) and name not in KEPT_TASKS:
                    raise ValueError(f"unknown name {name!r}: {nearest(name, KEPT_TASKS)}, or a file of your own")
            names = [one.task if isinstance(one, KeptFile) else one for one in value]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{name!r} appears more than once")
            return value

    settings: Settings

    def draw(self) -> None:
        drawn = [self._drawn(task) for task in self.settings.tasks]
        self.questions = self._worded([one for part in drawn if not isinstance(part, NewTask) for one in part])
        self.written = [part for part in drawn if isinstance(part, NewTask)]  # answered by a reply alone
        self.choices = {form: [as_choice(self.tokenizer, one, form) for one in self.questions] for form in FORMS}

    def _drawn(self, task: str | KeptFile) -> list[Question] | NewTask:
        count, seed = self.settings.items, self.context.seed
        if isinstance(task, str):
            return draw_questions([task], count, seed)
        found = dataclasses.replace(task.draw(count, seed), name=task.task)
        return [as_question(found.name, item) for item in found.test] if found.by_choice else found

    def _worded(self, questions: list[Question]) -> list[Question]:
        return questions

    @property
    def generated(self) -> bool:
        return self.settings.generated

    @property
    def size(self) -> int:
        written = sum(len(task.test) for task in self.written)
        return (len(FORMS) + self.generated) * len(self.questions) + written

    @property
    def longest(self) -> int:
        chats = [question.template.chat for question in self.questions] if self.generated else []
        options = (choice.longest for choices in self.choices.values() for choice in choices)
        asked = ((_asked(task), room_for(self.tokenizer, task)) for task in self.written)
        written = (longest_chat(self.tokenizer, questions, room) for questions, room in asked)
        return max([longest_chat(self.tokenizer, chats, REPLY), *options, *written])

    def content(self) -> Any:
        choices = {form: [[c.prompt, c.options] for c in choices] for form, choices in self.choices.items()}
        asked = [[[q.task, q.id, q.options, q.answer] for q in self.questions], choices]
        asked += [self._key(task) for task in self.written]
        if not self.generated:
            return asked
        chats = [question.template.chat for question in self.questions]
        named = {bare(option) for q in self.questions for option in q.options if bare(option) != option}
        return [*asked, ["generate", REPLY, GRADING, asked_key(self.tokenizer, chats), *sorted(named)]]

    def _key(self, task: NewTask) -> list[Any]:
        items = [[item.question, item.answer, repr(dict(item.metadata))] for item in task.test]
        asked = asked_key(self.tokenizer, _asked(task))
        return [task.name, task.grader, GRADING, room_for(self.tokenizer, task), items, asked]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        for form in FORMS:
            scores = score_options(model, self.choices[form], progress=progress)
            yield from (_chosen(question, form, one) for question, one in zip(self.questions, scores, strict=True))
        yield from self.answered(asking(model, self.tokenizer, progress))

    @property
    def replies(self) -> int:
        chats = len(self.questions) if self.generated else 0
        return chats + sum(len(_asked(task)) for task in self.written)

    @property
    def limits(self) -> dict[str, int]:
        return {task.name: room_for(self.tokenizer, task) for task in self.written}

    @property
    def grading(self) -> dict[str, str]:
        named = {question.task: str(GRADING) for question in self.questions if self.generated}
        return named | {task.name: grading_of(task) for task in self.written}

    def answered(self, ask: Ask) -> Iterable[Record]:
        if self.generated:
            replies = ask([question.template.chat for question in self.questions], REPLY)
            yield from (_answered(question, reply) for question, reply in zip(self.questions, replies, strict=True))
        for task in self.written:
            yield from reply_records(self.name, task, ask(_asked(task), room_for(self.tokenizer, task)))

    def reworded(self) -> Suite | None:
        again = RewordedKept(self.settings, self.context, self.tokenizer, self.tasks)
        return again if again.questions else None


class RewordedKept(KeptSuite):
    """The same questions in other words, with the same options in the same order: for the A/A floor.

    Options are scored one by one, so another order could not change an answer. Tasks with one wording are left out, and
    replies.
    """

    def draw(self) -> None:
        super().draw()
        self.written = []

    @property
    def generated(self) -> bool:
        return False

    def _worded(self, questions: list[Question]) -> list[Question]:
        return reworded(questions)


def _asked(task: NewTask) -> list[str]:
    return [item.question for item in task.test]


def _answered(question: Question, reply: str) -> Record:
    choice = named_first(reply, question.options)
    return Record(
        KeptSuite.name,
        question.task,
        "generate",
        question.id,
        correct=int(choice == question.answer),
        answer=question.options[question.answer],
        reply=reply,
        parsed=choice is not None,
        prompt=text_id(question.template.chat),
    )


def _chosen(question: Question, form: str, scores: Sequence[float]) -> Record:
    choice = likeliest(scores)
    return Record(
        KeptSuite.name,
        question.task,
        form,
        question.id,
        correct=int(choice == question.answer),
        choice=choice,
        answer=question.answer,
        options=question.options,
        scores=tuple(scores),
        prompt=text_id(question.template.plain if form == "plain" else question.template.chat),
    )

"""Suite `kept`: what the base model knew before training, as multiple choice in two forms, and in free replies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import text_id
from experiments.common.section import nearest
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, KEPT_TASKS, draw_questions, reworded
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.models.generation import Progress, generate_replies
from experiments.models.tokens import asked_key, continuation_ids, longest_chat, opened_ids, reply_ids, text_ids
from experiments.records import Record

FORMS = ("plain", "chat")
REPLY = 16  # tokens of a free reply


class KeptSuite(Suite):
    """Each question as the start of a sentence and as a chat; the option with the highest likelihood is the choice.

    With `generated` each chat is also answered by a free reply (form `generate`, no options shown). It is correct if it
    names the answer before any other option, and not parsed if it names none.
    """

    name = "kept"
    version = 2

    class Settings(SuiteSettings):
        """Which kept tasks are measured, on how many questions."""

        tasks: tuple[str, ...] = Field(DEFAULT_TASKS, min_length=1, description="names of kept tasks")
        items: int | Literal["all"] = Field(100, description="questions of each kept task, 4 or more; or all")
        generated: bool = Field(False, description="answer the chats in free replies too: a third form")
        aa_floor: bool = Field(True, description="ask the base model once more in other words, for the A/A floor")

        @property
        def has_floor(self) -> bool:
            return self.aa_floor and set(self.tasks) != {"agreement"}  # the only task with a single wording

        @field_validator("items", mode="before")
        @classmethod
        def _number_or_all(cls, value: Any) -> Any:
            if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 4):
                raise ValueError("must be a number of 4 or more, or all")
            return value

        @field_validator("tasks")
        @classmethod
        def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            for name in value:
                if name not in KEPT_TASKS:
                    raise ValueError(f"unknown name {name!r}: {nearest(name, KEPT_TASKS)}")
                if value.count(name) > 1:
                    raise ValueError(f"{name!r} appears more than once")
            return value

    settings: Settings

    def draw(self) -> None:
        settings = self.settings
        self.questions = self._worded(draw_questions(settings.tasks, settings.items, self.context.seed))
        self.choices = {form: [as_choice(self.tokenizer, one, form) for one in self.questions] for form in FORMS}

    def _worded(self, questions: list[Question]) -> list[Question]:
        return questions

    @property
    def generated(self) -> bool:
        return self.settings.generated

    @property
    def size(self) -> int:
        return (len(FORMS) + self.generated) * len(self.questions)

    @property
    def longest(self) -> int:
        chats = [question.template.chat for question in self.questions] if self.generated else []
        options = (choice.longest for choices in self.choices.values() for choice in choices)
        return max(longest_chat(self.tokenizer, chats, REPLY), *options)

    def content(self) -> Any:
        choices = {form: [[c.prompt, c.options] for c in choices] for form, choices in self.choices.items()}
        asked = [[[q.task, q.id, q.options, q.answer] for q in self.questions], choices]
        if not self.generated:
            return asked
        chats = [question.template.chat for question in self.questions]
        return [*asked, ["generate", REPLY, asked_key(self.tokenizer, chats)]]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        for form in FORMS:
            scores = score_options(model, self.choices[form], progress=progress)
            yield from (_chosen(question, form, one) for question, one in zip(self.questions, scores, strict=True))
        if self.generated:
            chats = [question.template.chat for question in self.questions]
            replies = generate_replies(model, self.tokenizer, chats, REPLY, progress=progress)
            yield from (_answered(question, reply) for question, reply in zip(self.questions, replies, strict=True))

    def reworded(self) -> Suite | None:
        return RewordedKept(self.settings, self.context, self.tokenizer, self.tasks)


class RewordedKept(KeptSuite):
    """The same questions in other words, with the same options in the same order: for the A/A floor.

    Options are scored one by one, so another order could not change an answer. Tasks with one wording are left out.
    """

    @property
    def generated(self) -> bool:
        return False

    def _worded(self, questions: list[Question]) -> list[Question]:
        return reworded(questions)


def as_choice(tokenizer: PreTrainedTokenizerBase, question: Question, form: str) -> Choice:
    """Return the question's token ids. form: `plain` or `chat`."""
    template = question.template
    if form == "plain":
        prompt = text_ids(tokenizer, template.plain)
        options = [continuation_ids(tokenizer, template.plain, f" {option}") for option in question.options]
    else:
        return chat_choice(tokenizer, template.chat, [template.reply.format(option) for option in question.options])
    return Choice(tuple(prompt), tuple(tuple(option) for option in options))


def chat_choice(tokenizer: PreTrainedTokenizerBase, chat: str, replies: Sequence[str]) -> Choice:
    """Return the token ids of a user's turn, and of each reply that may follow."""
    options = (tuple(reply_ids(tokenizer, chat, reply)) for reply in replies)
    return Choice(tuple(opened_ids(tokenizer, chat)), tuple(options))


def named_first(reply: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that appears first in the reply, as whole words in any case; None if none does.

    Of two that begin at the same character it is the longer one.
    """
    found = [
        (match.start(), -len(option), i)
        for i, option in enumerate(options)
        if (match := re.search(rf"(?<!\w){re.escape(option)}(?!\w)", reply, re.IGNORECASE))
    ]
    return min(found)[2] if found else None


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


def likeliest(scores: Sequence[float]) -> int:
    """Return the index of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda i: scores[i])


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

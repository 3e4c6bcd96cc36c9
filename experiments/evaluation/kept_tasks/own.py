"""Kept tasks of one's own: a file of questions, with options or with answers to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from experiments.common.paths import check_file_name
from experiments.common.section import Section
from experiments.data.files import LocalFile
from experiments.data.graders import AnyGrader
from experiments.data.items import Item, NewTask
from experiments.evaluation.kept_tasks.question import Question, Template

# On one line: SmolLM2-135M-Instruct chooses .30 of 40 capitals after "Question: ...\nAnswer:", .78 and .80 after these
PLAIN = "{} The answer is"
REWORDED = ("{} It is", "Please answer this question: {}")  # plain and chat, for the A/A floor
ALL = 10**9


class KeptFile(Section):
    """A file of questions that must not be forgotten. A path alone names its columns question, answer, options.

    With options a question is multiple choice, all of them asked, in the same two forms as the built-in tasks. Without,
    its greedy reply is graded.
    """

    path: str = Field(description="a table: .jsonl, .json or .parquet")
    name: str | None = Field(None, description="of the task, in tables and figures; default: that of the file")
    question: str = Field("question", description="column of the question, or a text with {columns}")
    answer: str = Field("answer", description="column of the answer")
    grader: AnyGrader | None = Field(
        None, description="as of a source; default: choice if there is a column options, else exact"
    )

    skip_bad_rows: bool = Field(False, description="pass over rows with cells that cannot be used")

    @field_validator("name")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        return check_file_name(value) if value is not None else None

    @field_validator("grader")
    @classmethod
    def _right_or_wrong(cls, value: Any) -> Any:
        if value is not None and value.by_likelihood:
            raise ValueError("likelihood is for the new task: a kept task counts right answers")
        return value

    @model_serializer(mode="wrap")
    def _short(self, fields: SerializerFunctionWrapHandler) -> Any:
        plain = {name: value for name, value in fields(self).items() if value != type(self).model_fields[name].default}
        return plain["path"] if set(plain) == {"path"} else plain

    @property
    def task(self) -> str:
        return self.name or re.sub(r"[^\w. -]", "_", Path(self.path).stem)

    @property
    def has_options(self) -> bool:
        """Whether its questions are multiple choice. Raises ConfigError if the file cannot be used."""
        grader = self._source().grader
        return grader is not None and grader.by_choice

    def digest(self) -> str:
        """Return sixteen hex digits that change when the questions change."""
        return self._source().digest()

    def draw(self, count: int | Literal["all"], seed: int) -> NewTask:
        """Return `count` questions, or all if there are fewer. Raises ConfigError if the file cannot be used."""
        task = self._source().sample(ALL if count == "all" else count, seed)
        assert isinstance(task, NewTask)  # of a table without a column of texts
        return task

    def notes(self, items: int | Literal["all"] = "all") -> list[str]:
        """Say what is not read of the file, and how answers are read that may be meant otherwise; one line each.

        items: how many questions of each task are measured.
        """
        source, task = self._source(), self.draw("all", 0)
        whole, some = len(task.test), []
        if lost := len(source.examples) - whole:
            some = [
                f"{lost:,} of its {whole + lost:,} rows are not measured: an earlier one asks the same, if with other "
                "options or another answer. Write what differs into the question"
            ]
        if items != "all" and items < whole:
            some += [f"{items:,} of its {whole:,} questions are measured (evaluation.suites.kept.items may be all)"]
        return [*source.notes, *some, *(source.grader.remarks(task.test) if source.grader else ())]

    def _source(self) -> LocalFile:
        columns: dict[str, Any] = {"path": self.path, "question": self.question, "answer": self.answer}
        columns["skip_bad_rows"] = self.skip_bad_rows
        grader = self.grader or ("choice" if _Questions(**columns).has_column("options") else "exact")
        return _Questions(**columns, grader=grader)


class _Questions(LocalFile):
    """A table of questions, also if it has columns of other shapes, such as documents or conversations."""

    @property
    def named(self) -> bool:
        return True


def as_question(task: str, item: Item) -> Question:
    """Return a question of multiple choice with all options of the item, in their order."""
    options, asked = tuple(item.metadata["options"]), item.question
    wrong = tuple(option for option in options if option != item.answer)
    reworded = REWORDED[0].format(asked), REWORDED[1].format(asked)
    template = Template(item.id, PLAIN.format(asked), asked, item.answer, wrong, reworded=reworded)
    return Question(task, template, options, options.index(item.answer))

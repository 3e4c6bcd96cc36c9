"""Suite `new`: the new task. Questions are answered by replies or a choice, texts are scored by their likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import model_validator
from transformers import PreTrainedModel

from experiments.common.hashing import text_id
from experiments.common.section import later_field
from experiments.data.items import Chat, Item, NewTask, NewText
from experiments.evaluation.choices import chat_choice, likeliest
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.replies import GRADING, GREEDY, ROOM, grading_of, reply_records, room_for, said_otherwise
from experiments.evaluation.suite import Ask, Suite, SuiteSettings
from experiments.evaluation.suites.text import text_nll, windows_of
from experiments.models.generation import Draw, generate_replies
from experiments.models.sharing import Progress
from experiments.models.tokens import added, answer_ids, asked_key, longest_chat, prompt_ids, text_ids
from experiments.records import Record


class NewTaskSuite(Suite):
    """Replies scored by the task's own verifier or by a grader; for texts the NLL of each document in nats per token.

    With `samples` each question is answered several times, and accuracy is the mean over all (mean@k). Intervals are
    over questions. The graders `choice` and `likelihood` read no replies: with the first, the option with the highest
    likelihood is the answer; the second measures the NLL of the data's own reply.
    """

    name = "new"
    version = 3

    class Settings(SuiteSettings):
        """How questions are answered."""

        samples: int = later_field(
            1, ge=1, le=10**4, description="replies to each question; more than 1 needs a temperature"
        )
        temperature: float = later_field(0.0, ge=0, description="replies are drawn at this temperature; 0: greedy")
        max_tokens: int | None = later_field(
            None, ge=1, le=10**5, description=f"tokens of a reply; default: the longest answer and {ROOM}"
        )

        @model_validator(mode="after")
        def _different(self) -> NewTaskSuite.Settings:
            if self.samples > 1 and not self.temperature:
                raise ValueError(f"samples: {self.samples} greedy replies are all the same: set a temperature above 0")
            return self

        @property
        def forms(self) -> tuple[str, ...]:
            """The forms of the records of one question; a drawn reply is never compared with a greedy one."""
            return tuple(f"sample {i + 1}" for i in range(self.samples)) if self.temperature else (GREEDY,)

    settings: Settings

    @property
    def size(self) -> int:
        return sum(self._size(task) for task in self.tasks)

    def _size(self, task: NewTask | NewText) -> int:
        if isinstance(task, NewText):
            return len(task.documents)
        return len(task.test) * (1 if task.by_choice or task.by_likelihood else self.settings.samples)

    @property
    def notes(self) -> list[str]:
        given = self.settings.model_dump(exclude_defaults=True)
        if not given or self._written:
            return [f"suite new: {line}" for task in self._written for line in said_otherwise(self.tokenizer, task)]
        return [f"suite new: {', '.join(given)} not read: nothing of the new task is answered by a reply"]

    @property
    def longest(self) -> int:
        return max(self._longest(task) for task in self.tasks)

    def _longest(self, task: NewTask | NewText) -> int:
        if isinstance(task, NewTask):
            if task.by_choice or task.by_likelihood:
                return max(choice.longest for choice in self._choices(task))
            return longest_chat(self.tokenizer, [item.question for item in task.test], self._most(task))
        windows = (window for document in self._windows(task) for window in document)
        return max((len(window) for window in windows), default=0)

    def _windows(self, task: NewText) -> list[list[list[int]]]:
        start = added(self.tokenizer)[0]
        return [windows_of(text_ids(self.tokenizer, text), start) for text in task.documents]

    def content(self) -> Any:
        return [self._content(task) for task in self.tasks]

    def _content(self, task: NewTask | NewText) -> list[Any]:
        if isinstance(task, NewText):
            start = added(self.tokenizer)[0]
            texts = [text_ids(self.tokenizer, document) for document in task.documents]
            return [task.name, texts, *([start] if start else [])]  # each window begins with it
        pairs = [[item.question, item.answer] for item in task.test]
        asked = asked_key(self.tokenizer, [item.question for item in task.test])
        graded = [task.grader, [repr(dict(item.metadata)) for item in task.test]] if task.grader else []
        graded += [task.verifier] if task.verifier else []
        drawn = [self.settings.samples, self.settings.temperature, self.context.seed] * (self.settings.temperature > 0)
        chosen = (
            [[choice.prompt, choice.options] for choice in self._choices(task)]
            if task.by_choice or task.by_likelihood
            else []
        )
        return [task.name, task.form, GRADING, self._most(task), pairs, asked, *graded, *drawn, *chosen]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        for task in self.tasks:
            if isinstance(task, NewText):
                yield from self._predicted(task, model, progress)
            elif task.by_likelihood:
                yield from self._likely(task, model, progress)
            elif task.by_choice:
                yield from self._chosen(task, model, progress)
            else:
                yield from self._answered(task, model, progress)

    @property
    def _written(self) -> list[NewTask]:
        """The tasks whose answers are read out of replies."""
        return [t for t in self.tasks if isinstance(t, NewTask) and not (t.by_choice or t.by_likelihood)]

    @property
    def replies(self) -> int:
        if self.settings.temperature or len(self._written) < len(self.tasks):
            return 0
        return sum(len(task.test) for task in self._written)

    @property
    def room(self) -> dict[str, int]:
        return {task.name: self._most(task) for task in self._written}

    @property
    def grading(self) -> dict[str, str]:
        return {task.name: grading_of(task) for task in self._written}

    @property
    def limits(self) -> dict[str, int]:
        return {task.name: self._most(task) for task in self._written if not task.invented}

    def answered(self, ask: Ask) -> Iterable[Record]:
        for task in self.tasks:
            assert isinstance(task, NewTask)  # else `replies` is 0
            replies = ask([item.question for item in task.test], self._most(task))
            yield from reply_records(self.name, task, replies, self.settings.forms)

    def _answered(self, task: NewTask, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        asked = [(item, form) for item in task.test for form in self.settings.forms]
        questions = [item.question for item, _ in asked]
        replies = generate_replies(
            model, self.tokenizer, questions, self._most(task), progress=progress, draw=self._draw(asked)
        )
        yield from reply_records(self.name, task, replies, self.settings.forms)

    def _draw(self, asked: list[tuple[Item, str]]) -> Draw | None:
        temperature = self.settings.temperature
        seeds = [f"{self.context.seed} {item.id} {form}" for item, form in asked]
        return Draw(temperature, seeds) if temperature else None

    def _most(self, task: NewTask) -> int:
        return self.settings.max_tokens or room_for(self.tokenizer, task)

    def _choices(self, task: NewTask) -> list[Choice]:
        if task.by_likelihood:
            return [self._reply(item) for item in task.test]
        return [chat_choice(self.tokenizer, item.question, item.metadata["options"]) for item in task.test]

    def _reply(self, item: Item) -> Choice:
        """Return the prompt of an item, and its reply as the only option."""
        reply = item.messages[-1] if isinstance(item, Chat) else item.reply
        answer = answer_ids(self.tokenizer, item.question, reply, item.ended)
        return Choice(tuple(prompt_ids(self.tokenizer, item.question)), (tuple(answer),))

    def _likely(self, task: NewTask, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        replies = self._choices(task)
        scores = score_options(model, replies, progress=progress)
        for item, reply, (score,) in zip(task.test, replies, scores, strict=True):
            tokens, prompt = len(reply.options[0]), text_id(item.question)
            yield Record(self.name, task.name, "nll", item.id, value=-score, tokens=tokens, prompt=prompt)

    def _chosen(self, task: NewTask, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        scores = score_options(model, self._choices(task), progress=progress)
        for item, one in zip(task.test, scores, strict=True):
            options, choice = tuple(item.metadata["options"]), likeliest(one)
            yield Record(
                self.name,
                task.name,
                "chat",
                item.id,
                correct=int(options[choice] == item.answer),
                choice=choice,
                answer=options.index(item.answer),
                options=options,
                scores=tuple(one),
                prompt=text_id(item.question),
            )

    def _predicted(self, task: NewText, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        windows = self._windows(task)
        flat = [window for document in windows for window in document]
        nll = iter(zip(text_nll(model, flat), flat, strict=True))
        for text, document in zip(task.documents, windows, strict=True):
            measured = [next(nll) for _ in document]
            tokens = sum(len(window) - 1 for _, window in measured)
            total = sum(value * (len(window) - 1) for value, window in measured)
            progress(1)
            if tokens:
                yield Record(self.name, task.name, "nll", text_id(text), value=total / tokens, tokens=tokens)

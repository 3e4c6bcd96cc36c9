"""Suite `new`: the new task. Questions are answered by replies or a choice, texts are scored by their likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import model_validator
from transformers import PreTrainedModel

from experiments.common.hashing import text_id
from experiments.common.section import later_field
from experiments.data.items import COMMAS, NUMBER, Chat, Form, Item, NewTask, NewText
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.evaluation.suites.kept import chat_choice, likeliest
from experiments.evaluation.suites.text import text_nll, windows_of
from experiments.models.generation import Draw, Progress, generate_replies
from experiments.models.tokens import answer_ids, asked_key, longest_chat, prompt_ids, text_ids
from experiments.records import Record

ROOM = 24  # tokens that a reply may be longer than the longest answer


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

        samples: int = later_field(1, ge=1, description="replies to each question; more than 1 needs a temperature")
        temperature: float = later_field(0.0, ge=0, description="replies are drawn at this temperature; 0: greedy")
        max_tokens: int | None = later_field(
            None, ge=1, description=f"tokens of a reply; default: the longest answer and {ROOM}"
        )

        @model_validator(mode="after")
        def _different(self) -> NewTaskSuite.Settings:
            if self.samples > 1 and not self.temperature:
                raise ValueError(f"samples: {self.samples} greedy replies are all the same: set a temperature above 0")
            return self

    settings: Settings

    @property
    def size(self) -> int:
        return sum(self._size(task) for task in self.tasks)

    def _size(self, task: NewTask | NewText) -> int:
        if isinstance(task, NewText):
            return len(task.documents)
        return len(task.test) * (1 if task.by_choice or task.by_likelihood else self.settings.samples)

    @property
    def longest(self) -> int:
        return max(self._longest(task) for task in self.tasks)

    def _longest(self, task: NewTask | NewText) -> int:
        if isinstance(task, NewTask):
            if task.by_choice or task.by_likelihood:
                return max(choice.longest for choice in self._choices(task))
            return longest_chat(self.tokenizer, [item.question for item in task.test], self._most(task))
        windows = (window for text in task.documents for window in windows_of(text_ids(self.tokenizer, text)))
        return max((len(window) for window in windows), default=0)

    def content(self) -> Any:
        return [self._content(task) for task in self.tasks]

    def _content(self, task: NewTask | NewText) -> list[Any]:
        if isinstance(task, NewText):
            return [task.name, [text_ids(self.tokenizer, document) for document in task.documents]]
        pairs = [[item.question, item.answer] for item in task.test]
        asked = asked_key(self.tokenizer, [item.question for item in task.test])
        graded = [task.grader, [repr(dict(item.metadata)) for item in task.test]] if task.grader else []
        drawn = [self.settings.samples, self.settings.temperature, self.context.seed] * (self.settings.temperature > 0)
        chosen = (
            [[choice.prompt, choice.options] for choice in self._choices(task)]
            if task.by_choice or task.by_likelihood
            else []
        )
        return [task.name, task.form, self._most(task), pairs, asked, *graded, *drawn, *chosen]

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

    def _answered(self, task: NewTask, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        asked = [(item, sample) for item in task.test for sample in range(self.settings.samples)]
        questions = [item.question for item, _ in asked]
        replies = generate_replies(
            model, self.tokenizer, questions, self._most(task), progress=progress, draw=self._draw(asked)
        )
        for (item, sample), reply in zip(asked, replies, strict=True):
            answer = parse_answer(reply, task.form)
            yield Record(
                self.name,
                task.name,
                sample_form(sample),
                item.id,
                correct=int(task.correct(answer, item)),
                answer=item.answer,
                reply=reply,
                parsed=answer is not None,
                prompt=text_id(item.question),
            )

    def _draw(self, asked: list[tuple[Item, int]]) -> Draw | None:
        temperature = self.settings.temperature
        seeds = [f"{self.context.seed} {item.id} {sample}" for item, sample in asked]
        return Draw(temperature, seeds) if temperature else None

    def _most(self, task: NewTask) -> int:
        """Return the number of tokens that a reply may have. A worked solution needs more than the bare answer."""
        answers = (answer_ids(self.tokenizer, item.question, item.reply, ended=False) for item in task.test)
        return self.settings.max_tokens or ROOM + max(len(answer) for answer in answers)

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
        windows = [windows_of(text_ids(self.tokenizer, text)) for text in task.documents]
        flat = [window for document in windows for window in document]
        nll = iter(zip(text_nll(model, flat), flat, strict=True))
        for text, document in zip(task.documents, windows, strict=True):
            measured = [next(nll) for _ in document]
            tokens = sum(len(window) - 1 for _, window in measured)
            total = sum(value * (len(window) - 1) for value, window in measured)
            progress(1)
            if tokens:
                yield Record(self.name, task.name, "nll", text_id(text), value=total / tokens, tokens=tokens)


def sample_form(sample: int) -> str:
    """Return the form of a record: `generate`, then `generate 2` and so on, so that all samples of an item pair."""
    return f"generate {sample + 1}" if sample else "generate"


def parse_answer(reply: str, form: Form) -> str | None:
    """Read the answer out of a reply: its last number, or the whole text of form `text`. None if there is none.

    "12 - 5 = 1,007." answers "1007", in form `commas` "1,007"; the minus of "12 - 5" or "12-5" is no sign.
    """
    if form == "text":
        return reply.strip() or None
    pattern = NUMBER if form == "number" else COMMAS
    numbers: list[str] = pattern.findall(reply.replace("\N{MINUS SIGN}", "-"))
    return (numbers[-1].replace(",", "") if form == "number" else numbers[-1]) if numbers else None

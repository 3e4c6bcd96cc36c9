"""Suite `new`: the new task. Questions are answered by greedy replies, texts are scored by their likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedModel

from experiments.common.hashing import text_id
from experiments.data.items import COMMAS, NUMBER, Form, NewTask, NewText
from experiments.evaluation.suite import Suite
from experiments.evaluation.suites.text import text_nll, windows_of
from experiments.models.generation import Progress, generate_replies
from experiments.models.tokens import answer_ids, asked_key, longest_chat, text_ids
from experiments.records import Record

ROOM = 24  # tokens that a reply may be longer than the longest answer


class NewTaskSuite(Suite):
    """Greedy replies scored by the task's own verifier; for texts the NLL of each document in nats per token."""

    name = "new"
    version = 2

    @property
    def size(self) -> int:
        return sum(len(task.test) if isinstance(task, NewTask) else len(task.documents) for task in self.tasks)

    @property
    def longest(self) -> int:
        return max(self._longest(task) for task in self.tasks)

    def _longest(self, task: NewTask | NewText) -> int:
        if isinstance(task, NewTask):
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
        return [task.name, task.form, self._most(task), pairs, asked]

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        for task in self.tasks:
            if isinstance(task, NewTask):
                yield from self._answered(task, model, progress)
            else:
                yield from self._predicted(task, model, progress)

    def _answered(self, task: NewTask, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        questions = [item.question for item in task.test]
        replies = generate_replies(model, self.tokenizer, questions, self._most(task), progress=progress)
        for item, reply in zip(task.test, replies, strict=True):
            answer = parse_answer(reply, task.form)
            yield Record(
                self.name,
                task.name,
                "generate",
                item.id,
                correct=int(task.correct(answer, item)),
                answer=item.answer,
                reply=reply,
                parsed=answer is not None,
                prompt=text_id(item.question),
            )

    def _most(self, task: NewTask) -> int:
        """Return the number of tokens that a reply may have. A worked solution needs more than the bare answer."""
        return ROOM + max(len(answer_ids(self.tokenizer, item.question, item.reply, ended=False)) for item in task.test)

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


def parse_answer(reply: str, form: Form) -> str | None:
    """Read the answer out of a reply: its last number, or the whole text of form `text`. None if there is none.

    "12 - 5 = 1,007." answers "1007", in form `commas` "1,007"; the minus of "12 - 5" or "12-5" is no sign.
    """
    if form == "text":
        return reply.strip() or None
    pattern = NUMBER if form == "number" else COMMAS
    numbers: list[str] = pattern.findall(reply.replace("\N{MINUS SIGN}", "-"))
    return (numbers[-1].replace(",", "") if form == "number" else numbers[-1]) if numbers else None

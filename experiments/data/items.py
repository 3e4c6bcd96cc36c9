"""Examples: a question with its answer, a conversation, or a text; and tasks of held-out examples to measure on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.common.errors import BenchError
from experiments.common.hashing import text_id
from experiments.common.machine_faults import NUMBERS
from experiments.data.matching import FINAL
from experiments.data.numerals import COMMAS, WHOLE, tidy
from experiments.models.conversation import Message, earlier_questions, messages_of, question_of, tools_of

Form = Literal["text", "number", "commas"]
Scorer = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True)
class Item:
    """One question and its answer.

    solution: worked steps, trained on before the answer; may be empty. ended: False for a reply that was cut off, which
    gets no end of turn. metadata: further values for the generator's verifier.
    """

    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    solution: str = ""
    ended: bool = True

    @property
    def id(self) -> str:
        """Id of the question: the same item has the same id in every run."""
        return text_id(self.question)

    @property
    def entry(self) -> dict[str, Any]:
        """The item as the generator's verifier reads it."""
        return {"question": self.question, "answer": self.answer, "metadata": dict(self.metadata)}

    @property
    def reply(self) -> str:
        """Text that a model is trained on: the worked solution, if there is one, and the answer as the last line."""
        return f"{self.solution}\n{FINAL} {self.answer}" if self.solution else self.answer


@dataclass(frozen=True)
class Text:
    """One document. group: unit that is held out as a whole (a module). ended: False if the end was cut off."""

    text: str
    group: str = ""
    ended: bool = True

    @property
    def id(self) -> str:
        """Id of the group, or of the text if it has no group."""
        return text_id(self.group or self.text)


@dataclass(frozen=True)
class Chat(Item):
    """A conversation as an item: the question is all that was said before the last reply, the answer is that reply.

    fields: JSON of what the reply has besides its content (tool calls, thinking). context: number of messages at the
    start whose replies are not trained on.
    """

    fields: str = ""
    context: int = 0

    @property
    def messages(self) -> list[Message]:
        """All messages, with the last reply."""
        last = {"role": "assistant", "content": self.answer, **(json.loads(self.fields) if self.fields else {})}
        return [*messages_of(self.question), last]

    @property
    def tools(self) -> list[Message]:
        """The tools that may be called."""
        return [*tools_of(self.question)]

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the questions of all its replies: none of them is trained on if one is held out."""
        return frozenset({self.id, *map(text_id, earlier_questions(self.question))})

    @property
    def place(self) -> str:
        """The row that the conversation was read from, for errors."""
        return str(getattr(self.question, "place", ""))


def chat(messages: Sequence[Message], tools: Sequence[Message] = (), place: str = "", context: int = 0) -> Item:
    """Return messages up to the last reply as an example: a plain Item if they are one question and its answer.

    The answer of a reply without content is the JSON of its tool calls.
    """
    last = max(i for i, one in enumerate(messages) if one["role"] == "assistant")
    question, reply = question_of(messages[:last], tools, place), messages[last]
    more = {name: value for name, value in reply.items() if name not in ("role", "content")}
    if not more and not context and type(question) is str:
        return Item(question, reply["content"])
    if reply["content"]:
        return Chat(question, reply["content"], fields=_json(more) if more else "", context=context)
    calls = _json([call["function"] for call in more.get("tool_calls", [])])
    return Chat(question, calls, fields=_json({"content": "", **more}), context=context)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


Example = Item | Text  # a Chat is an Item


def is_held_out(example: Example, ids: frozenset[str]) -> bool:
    """Whether an example has one of these ids; of a conversation, whether a reply answers one of these questions."""
    return example.id in ids or (isinstance(example, Chat) and not example.ids.isdisjoint(ids))


@dataclass(frozen=True)
class NewTask:
    """Questions to measure the new task on. scorer: verifier, (answer, entry) -> score in [0, 1].

    grader: digest of the grader that the YAML names; empty without one. by_choice: it chooses among an item's options.
    by_likelihood: it scores the item's own reply. verifier: what else decides the grades of a generator's verifier.
    further: ids of other items of its test set.
    """

    name: str
    test: tuple[Item, ...]
    scorer: Scorer = field(compare=False, repr=False)
    grader: str = ""
    by_choice: bool = False
    by_likelihood: bool = False
    verifier: str = ""
    further: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the items that must not be trained on."""
        return self.further | frozenset(item.id for item in self.test)

    @functools.cached_property
    def form(self) -> Form:
        """Form of all answers, in which an answer is read out of each reply.

        number: commas are between thousands only. commas: numbers with a decimal comma, or lists of numbers; commas are
        part of the answer. text: anything else, and all that a grader of the YAML reads.
        """
        if self.grader:
            return "text"
        answers = [tidy(item.answer).strip() for item in self.test]
        if all(WHOLE.fullmatch(answer) for answer in answers):
            return "number"
        return "commas" if all(COMMAS.fullmatch(answer) for answer in answers) else "text"

    def correct(self, answer: str | None, item: Item) -> bool:
        """Whether an answer is that of the item, or the verifier gives it the full score.

        Of a worked reply that is a text, the last line counts too. None, an answer that could not be read, is wrong. So
        is an answer that the verifier ends on with an error: it was made for answers, and a reply is any text.
        """
        if answer is None:
            return False
        if self.grader:
            return self._scored(answer, item)
        last = answer.splitlines()[-1].removeprefix(FINAL).strip() if item.solution and answer else answer
        return any(self._correct(one, item) for one in dict.fromkeys((answer, last)))

    def _correct(self, answer: str, item: Item) -> bool:
        wanted = tidy(item.answer).strip()
        if answer.strip() == (wanted.replace(",", "") if self.form == "number" else wanted):
            return True
        if self.form == "commas" and answer.count(",") != wanted.count(","):
            return False  # to the verifier, 1,234 and 1234 are one number
        return self._scored(answer, item)

    def _scored(self, answer: str, item: Item) -> bool:
        try:
            return self.scorer(answer, item.entry) >= 1.0
        except (BenchError, MemoryError):  # of the machine
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NUMBERS:  # not by its text, in which the reply may be
                raise
            return False


@dataclass(frozen=True)
class NewText:
    """Documents to measure the new task on, in nats per token.

    groups: ids of the groups (modules) that are held out as a whole; empty if documents have no groups. further: ids of
    other documents of its test set.
    """

    name: str
    documents: tuple[str, ...]
    groups: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    further: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the documents that must not be trained on."""
        return self.further | (self.groups or frozenset(text_id(document) for document in self.documents))

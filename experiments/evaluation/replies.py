"""Free replies to the questions of a task: how long they may be, the answer in them, their records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import short_digest, text_id
from experiments.data.grader import Exact, shortened
from experiments.data.items import Form, Item, NewTask
from experiments.data.numerals import COMMAS, NUMBER, in_one_spelling, tidy
from experiments.evaluation.suite import Ask
from experiments.models.generation import generate_replies
from experiments.models.sharing import Progress
from experiments.models.tokens import answer_ids, reply_text
from experiments.models.turns import THOUGHT_MARKS
from experiments.records import Record

GREEDY = "generate"  # form of a record
GRADING = 11  # in the key of cached records: raise it when a change of the code changes which replies are right
LOOKED_AT = 100  # items of a task whose own replies are written and read back, to see whether they stay right
ROOM = 24  # tokens that a reply may be longer than the longest answer


def grading_of(task: NewTask) -> str:
    """Return a digest of what decides which replies to a task are right: the grader with its code, and the bench's."""
    return short_digest(task.grader or Exact().digest(), task.verifier, str(GRADING))


def room_for(tokenizer: PreTrainedTokenizerBase, task: NewTask) -> int:
    """Return the number of tokens that a reply may have. A worked solution needs more than the bare answer."""
    return ROOM + max(len(answer_ids(tokenizer, item.question, item.reply, ended=False)) for item in task.test)


def asking(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Ask:
    """Return a function that asks a model here: questions and a number of tokens -> greedy replies."""
    return lambda questions, most: generate_replies(model, tokenizer, questions, most, progress=progress)


def reply_records(
    suite: str, task: NewTask, replies: Sequence[str], forms: Sequence[str] = (GREEDY,)
) -> Iterator[Record]:
    """Yield the record of each reply. replies: one of each form to the first question, then those to the next."""
    asked = [(item, form) for item in task.test for form in forms]
    for (item, form), reply in zip(asked, replies, strict=True):
        answer = answer_in(reply, item, task)
        yield Record(
            suite,
            task.name,
            form,
            item.id,
            correct=int(task.correct(answer, item)),
            answer=item.answer,
            reply=reply,
            parsed=answer is not None,
            prompt=text_id(item.question),
        )


def answer_in(reply: str, item: Item, task: NewTask) -> str | None:
    """Read the answer to an item out of a reply; None if there is none."""
    return parse_answer(spoken(reply, item.answer), task.form)


def said_otherwise(tokenizer: PreTrainedTokenizerBase, task: NewTask) -> list[str]:
    """Say how many right replies the tokenizer turns into wrong ones: it puts spaces between marks, or changes letters.

    Looks at the data's own replies to the first items.
    """
    changed = []
    for item in task.test[:LOOKED_AT]:
        text = reply_text(tokenizer, answer_ids(tokenizer, item.question, item.reply, ended=False)).strip()
        if text != item.reply.strip() and task.correct(answer_in(item.reply, item, task), item):
            changed += [(item.reply, text)] * (not task.correct(answer_in(text, item, task), item))
    if not changed:
        return []
    (reply, text), looked = changed[0], len(task.test[:LOOKED_AT])
    return [
        f"task {task.name}: the tokenizer turns {len(changed)} of {looked} right replies into wrong ones, such as "
        f"{shortened(reply)!r} into {shortened(text)!r}: no model can have these right; choose a base with another "
        "tokenizer, or a grader that passes over the difference"
    ]


def spoken(reply: str, answer: str = "") -> str:
    """Return what a reply says after its thoughts (`THOUGHT_MARKS`); nothing if it was cut off in them.

    answer: of the data; thoughts are part of the reply if it has some too.
    """
    if any(end in answer for end in THOUGHT_MARKS.values()):
        return reply
    for begin, end in THOUGHT_MARKS.items():
        if end in reply:
            return reply.rpartition(end)[2]
        if reply.lstrip().startswith(begin):
            return ""
    return reply


def parse_answer(reply: str, form: Form) -> str | None:
    """Read the answer out of a reply: its last number, or the whole text of form `text`. None if there is none.

    "12 - 5 = 1,007." answers "1007", in form `commas` "1,007"; the minus of "12 - 5" or "12-5" is no sign. In form
    `number` "1 000" answers "1000", and "1,00" answers "1.00" (`in_one_spelling`).
    """
    if form == "text":
        return reply.strip() or None
    numbers: list[str] = NUMBER.findall(in_one_spelling(reply)) if form == "number" else COMMAS.findall(tidy(reply))
    return (numbers[-1].replace(",", "") if form == "number" else numbers[-1]) if numbers else None

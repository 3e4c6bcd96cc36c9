"""The options of a question as token ids, and which of them a model has chosen: by its scores, or in a reply."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from experiments.data.spelling import bare, unmarked, whole
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.multiple_choice import Choice
from experiments.evaluation.replies import spoken
from experiments.models.tokens import continuation_ids, opened_ids, reply_ids, text_ids


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

    Of two that begin at the same character it is the longer one. A final full stop of an option does not count.
    """
    options = [bare(option) for option in options]
    said = unmarked(spoken(reply))
    found = [
        (match.start(), -len(option), i)
        for i, option in enumerate(options)
        if (match := re.search(whole(option), said, re.IGNORECASE))
    ]
    return min(found)[2] if found else None


def likeliest(scores: Sequence[float]) -> int:
    """Return the index of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda i: scores[i])

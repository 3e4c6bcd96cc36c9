"""Suite `drift`: the KL divergence from the base model, on its own replies, natural text and kept questions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import json_digest, text_id
from experiments.common.section import later_field
from experiments.data.items import NewTask
from experiments.evaluation.choices import as_choice
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, draw_questions
from experiments.evaluation.log_probs import stored
from experiments.evaluation.reply_log_probs import BATCH, Reply, Use, as_it_is, kl_per_token, reply_log_probs
from experiments.evaluation.suite import DrawnSuite, PreparedSuite, SuiteSettings
from experiments.evaluation.suites.kept import FORMS
from experiments.evaluation.suites.text import text_windows
from experiments.models.generation import generate_ids
from experiments.models.sharing import Progress, no_progress
from experiments.models.tokens import asked_key, longest_chat, prompt_ids
from experiments.records import Record

LONG = 2  # windows of natural text at a time
GENERAL, NEW_PROMPTS, TEXT, KEPT = "base replies", "new_prompts", "text", "kept"  # tasks of the records
PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List five fruits that are red.",
    "Translate into French: Good morning, my friend.",
    "What is photosynthesis?",
    "Give me three tips for sleeping better.",
    "Write the first lines of a story about a lonely lighthouse keeper.",
    "Summarise the plot of Romeo and Juliet.",
    "How do I make a cup of tea?",
    "Describe a busy market in the morning.",
    "What are the advantages of riding a bicycle to work?",
    "Write a polite email that asks for a day off.",
    "Why do leaves change colour in autumn?",
    "Name some famous painters and one work of each.",
    "What is the difference between a frog and a toad?",
    "Explain what a computer program is to a child.",
    "Rewrite this sentence in the past tense: She walks to the market and buys bread.",
    "Give a recipe for a simple vegetable soup.",
    "What should I pack for a week in the mountains?",
    "Write a dialogue between a teacher and a curious pupil.",
    "Who was Marie Curie?",
    "Suggest a name for a small bakery and say why.",
    "How does a bill become a law in the United States?",
    "What makes a good friend?",
)


@dataclass(frozen=True)
class Given:
    """A text that is read as it is. task, item: of its record. text: what it is known by."""

    task: str
    item: str
    text: str
    reply: Reply


class DriftSuite(DrawnSuite):
    """KL(base || trained) in nats per token, on the base model's own greedy replies and on given text.

    Task `base replies`: replies to general prompts. Task `new_prompts`: replies to the first questions of the new task;
    none if the new task is a text. Task `text`: windows of the text suite's story. Tasks `kept plain` and `kept chat`:
    the right answers to kept questions in both forms.
    """

    name = "drift"
    version = 2

    class Settings(SuiteSettings):
        """How many replies the KL divergence is measured on."""

        replies: int = Field(16, ge=1, description=f"replies to general prompts, at most {len(PROMPTS)}")
        new_replies: int = Field(8, ge=0, description="replies to questions of the new task")
        reply_tokens: int = Field(48, ge=1, le=10**5, description="most tokens of a reply")
        text_tokens: int = later_field(0, ge=0, le=10**7, description="tokens of natural text, 64 or more; 0: none")
        kept: int = later_field(0, ge=0, description="questions of each default kept task, in two forms; 0: none")

        @field_validator("text_tokens")
        @classmethod
        def _enough(cls, value: int) -> int:
            if 0 < value < 64:
                raise ValueError("must be 0, or 64 or more")
            return value

    settings: Settings

    def draw(self) -> None:
        settings = self.settings
        if settings.replies > len(PROMPTS):
            raise ConfigError(
                f"evaluation.suites.drift.replies={settings.replies}, but there are only {len(PROMPTS)} general prompts"
            )
        general = [(GENERAL, f"prompt {i}", prompt) for i, prompt in enumerate(PROMPTS[: settings.replies])]
        by_task = (task.test for task in self.tasks if isinstance(task, NewTask))
        turns = [item for items in itertools.zip_longest(*by_task) for item in items if item]  # of each task in turn
        new = [(NEW_PROMPTS, item.id, item.question) for item in turns[: settings.new_replies]]
        self.prompts = general + new
        self.given = [*self._text(), *self._kept()]

    @property
    def notes(self) -> list[str]:
        asked, found = self.settings.new_replies, len(self.prompts) - self.settings.replies
        if found == asked or "new_replies" not in self.settings.model_dump(exclude_defaults=True):
            return []
        return [
            f"suite drift: new_replies: {asked}, but the new task has {found} held-out questions, so it has {found}"
        ]

    def _text(self) -> Iterator[Given]:
        tokens, field = self.settings.text_tokens, "evaluation.suites.drift.text_tokens"
        for i, window in enumerate(text_windows(self.tokenizer, tokens, field) if tokens else ()):
            yield Given(
                TEXT, f"window {i}", str(self.tokenizer.decode(window)), Reply(tuple(window[:1]), tuple(window[1:]))
            )

    def _kept(self) -> Iterator[Given]:
        if not self.settings.kept:
            return
        for question in draw_questions(DEFAULT_TASKS, self.settings.kept, self.context.seed):
            for form in FORMS:
                choice = as_choice(self.tokenizer, question, form)
                asked = question.template.plain if form == "plain" else question.template.chat
                reply = Reply(choice.prompt, choice.options[question.answer])
                yield Given(f"{KEPT} {form}", f"{question.task} {question.id}", asked, reply)

    @property
    def longest(self) -> int:
        chats = longest_chat(self.tokenizer, [p for _, _, p in self.prompts], self.settings.reply_tokens)
        return max([chats, *(len(one.reply.prompt) + len(one.reply.reply) for one in self.given)])

    def content(self) -> Any:
        key = [self.settings.reply_tokens, self.prompts, asked_key(self.tokenizer, [p for _, _, p in self.prompts])]
        return (
            [*key, [(one.task, one.item, one.reply.prompt, one.reply.reply) for one in self.given]]
            if self.given
            else key
        )

    def prepare(self, base: PreTrainedModel, state: Mapping[str, Any], folder: Path | None) -> DriftFromBase:
        """Generate the base model's replies, unless `state` has them, and its log-probabilities on them.

        The log-probabilities are read from a file in `folder` if it is there.
        """
        replies = self._restored(state) if state else self._written(base)

        def compute() -> dict[int, Tensor]:
            return dict(all_log_probs(base, replies, self.given))

        read = [*replies, *(one.reply for one in self.given)]
        references = stored(folder / _file(read), compute) if folder else compute()
        return DriftFromBase(self.prompts, replies, self.given, references)

    def _written(self, base: PreTrainedModel) -> list[Reply]:
        return base_replies(base, self.tokenizer, [prompt for _, _, prompt in self.prompts], self.settings.reply_tokens)

    def _restored(self, state: Mapping[str, Any]) -> list[Reply]:
        replies = [Reply(tuple(r["prompt"]), tuple(r["reply"])) for r in state["replies"]]
        if len(replies) != len(self.prompts):
            raise ConfigError(
                f"the saved evaluation has {len(replies)} base replies, but replies and new_replies of "
                f"evaluation.suites.drift ask for {len(self.prompts)}: start a new run, or set the old numbers"
            )
        return replies


@dataclass(frozen=True, eq=False)
class DriftFromBase(PreparedSuite):
    """Measure the KL of any model on the base's replies and on given text.

    prompts: (task, item, text) of each reply. references: the base's log-probabilities by index of a reply, those of
    `given` after the others, (tokens, vocabulary) each.
    """

    name = DriftSuite.name
    prompts: Sequence[tuple[str, str, str]]
    replies: list[Reply]
    given: Sequence[Given]
    references: dict[int, Tensor]

    @property
    def size(self) -> int:
        return len(self.prompts) + len(self.given)

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterable[Record]:
        def compared(i: int, q: Tensor) -> float:
            return kl_per_token(self.references[i].to(q.device), q)

        kl = dict(all_log_probs(model, self.replies, self.given, compared, progress))
        read = [*self.replies, *(one.reply for one in self.given)]
        for i, (task, item, prompt) in enumerate([*self.prompts, *((g.task, g.item, g.text) for g in self.given)]):
            tokens = len(read[i].reply)
            yield Record(self.name, task, "kl", item, value=kl[i], tokens=tokens, prompt=text_id(prompt))

    def state(self) -> dict[str, Any]:
        return _state(self.replies)


def _state(replies: Sequence[Reply]) -> dict[str, Any]:
    return {"replies": [{"prompt": list(r.prompt), "reply": list(r.reply)} for r in replies]}


def _file(replies: Sequence[Reply]) -> str:
    """Return a name that depends on the replies: a run may hold other replies than the cache."""
    return f"log_probs-{json_digest(_state(replies))[:16]}.safetensors"


def base_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_tokens: int,
    progress: Progress = no_progress,
) -> list[Reply]:
    """Generate the base model's greedy replies."""
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    replies = generate_ids(model, tokenizer, encoded, max_tokens, progress=progress)
    return [Reply(tuple(p), tuple(r)) for p, r in zip(encoded, replies, strict=True)]


def all_log_probs(
    model: PreTrainedModel,
    replies: Sequence[Reply],
    given: Sequence[Given],
    use: Use = as_it_is,
    progress: Progress = no_progress,
) -> Iterator[tuple[int, Any]]:
    """Yield `reply_log_probs` of the base's replies, then of given text, whose indices come after theirs."""
    yield from reply_log_probs(model, replies, use, progress)
    for task in dict.fromkeys(one.task for one in given):
        own = {len(replies) + i: one.reply for i, one in enumerate(given) if one.task == task}
        places, size = list(own), LONG if task == TEXT else BATCH
        placed = functools.partial(_placed, use, places)
        for i, found in reply_log_probs(model, list(own.values()), placed, progress, size):
            yield places[i], found


def _placed(use: Use, places: Sequence[int], i: int, q: Tensor) -> Any:
    return use(places[i], q)

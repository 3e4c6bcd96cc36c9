"""Suite `kept`: what the base model knew before training, as multiple choice in two forms, and in its own words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.hashing import text_id
from experiments.evaluation.kept_tasks.probes import Probe, kept_items, reworded
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.suite import Suite
from experiments.models.generation import Advance, generate_replies
from experiments.models.tokens import continuation_ids, prompt_ids, reply_ids
from experiments.records import Record

FORMS = ("plain", "chat")
REPLY = 16  # tokens of an answer in the model's own words


class KeptSuite(Suite):
    """Each probe as a stem to complete and as a chat; the option of the highest likelihood is the choice.

    With `kept_generated` each chat is answered as well (form `generate`, no options shown): right where the reply names
    the answer before any other option, not parsed where it names none. The scorecard then has generated beside
    likelihood accuracy.
    """

    name = "kept"
    version = 2

    def draw(self) -> None:
        settings = self.config.evaluation
        self.probes = self._worded(kept_items(settings.kept_tasks, settings.kept_items, self.config.seed))
        self.choices = {form: [as_choice(self.tokenizer, probe, form) for probe in self.probes] for form in FORMS}

    def _worded(self, probes: list[Probe]) -> list[Probe]:
        return probes

    @property
    def generated(self) -> bool:
        return self.config.evaluation.kept_generated

    @property
    def size(self) -> int:
        return (len(FORMS) + self.generated) * len(self.probes)

    def content(self) -> Any:
        choices = {form: [[c.prompt, c.options] for c in choices] for form, choices in self.choices.items()}
        asked = [[[p.task, p.id, p.options, p.answer] for p in self.probes], choices]
        return [*asked, ["generate", REPLY]] if self.generated else asked

    def measure(self, model: PreTrainedModel, advance: Advance) -> Iterable[Record]:
        for form in FORMS:
            scores = score_options(model, self.choices[form], advance=advance)
            yield from (_record(probe, form, values) for probe, values in zip(self.probes, scores, strict=True))
        if self.generated:
            questions = [probe.question_chat for probe in self.probes]
            replies = generate_replies(model, self.tokenizer, questions, REPLY, advance=advance)
            yield from (_answered(probe, reply) for probe, reply in zip(self.probes, replies, strict=True))


class RewordedKept(KeptSuite):
    """The same questions in other words, with the same options in the same places: for the A/A floor.

    Options are scored one by one, so that another order of them could not change an answer. Of tasks that have a second
    wording; `evaluation.has_floor` says whether there is one.
    """

    @property
    def generated(self) -> bool:
        return False

    def _worded(self, probes: list[Probe]) -> list[Probe]:
        return reworded(probes)


def as_choice(tokenizer: PreTrainedTokenizerBase, probe: Probe, form: str) -> Choice:
    """The probe's token ids. form: `plain` or `chat`."""
    if form == "plain":
        prompt = list(tokenizer(probe.question_plain)["input_ids"])
        options = [continuation_ids(tokenizer, probe.question_plain, f" {option}") for option in probe.options]
    else:
        prompt = prompt_ids(tokenizer, probe.question_chat)
        options = [reply_ids(tokenizer, probe.question_chat, probe.reply.format(option)) for option in probe.options]
    return Choice(tuple(prompt), tuple(tuple(option) for option in options))


def named_first(reply: str, options: Sequence[str]) -> int | None:
    """Index of the option that stands first in the reply, as whole words in any case; of two that begin at the same
    place the longer. None where there is none."""
    found = [
        (match.start(), -len(option), i)
        for i, option in enumerate(options)
        if (match := re.search(rf"(?<!\w){re.escape(option)}(?!\w)", reply, re.IGNORECASE))
    ]
    return min(found)[2] if found else None


def _answered(probe: Probe, reply: str) -> Record:
    choice = named_first(reply, probe.options)
    return Record(
        "kept",
        probe.task,
        "generate",
        probe.id,
        correct=int(choice == probe.answer),
        answer=probe.options[probe.answer],
        reply=reply,
        parsed=choice is not None,
        prompt=text_id(probe.question_chat),
    )


def _record(probe: Probe, form: str, scores: Sequence[float]) -> Record:
    choice = max(range(len(scores)), key=lambda i: scores[i])
    return Record(
        "kept",
        probe.task,
        form,
        probe.id,
        correct=int(choice == probe.answer),
        choice=choice,
        answer=probe.answer,
        options=probe.options,
        scores=tuple(scores),
        prompt=text_id(probe.question_plain if form == "plain" else probe.question_chat),
    )

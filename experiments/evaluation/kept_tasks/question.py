"""Multiple choice of the kept tasks: templates, and the questions that are made from them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

OPTIONS = 4


@dataclass(frozen=True)
class Template:
    """A question without its options.

    id: unique within the task. plain: the start of a sentence; a space and an option complete it. chat: a user's turn.
    right: the answer. wrong: candidates for the other options. reply: how an option is written as the assistant's turn,
    for example with a full stop (`They {}.`) if the bare word would be an unlikely reply. reworded: `plain` and `chat`
    in other words, for the A/A floor; None if the task has only one wording.
    """

    id: str
    plain: str
    chat: str
    right: str
    wrong: tuple[str, ...]
    reply: str = "{}"
    reworded: tuple[str, str] | None = None


@dataclass(frozen=True)
class Question:
    """A template with its options in their order. answer: index of the right option."""

    task: str
    template: Template
    options: tuple[str, ...]
    answer: int

    @classmethod
    def draw(cls, task: str, template: Template, seed: int) -> Question:
        """Draw three wrong options (fewer if there are fewer) and the order of all.

        Both depend only on seed, task and template: asking more questions or other tasks changes neither.
        """
        rng = random.Random(f"{seed} {task} {template.id}")
        options = [template.right, *rng.sample(template.wrong, min(OPTIONS - 1, len(template.wrong)))]
        rng.shuffle(options)
        return cls(task, template, tuple(options), options.index(template.right))

    @property
    def id(self) -> str:
        return self.template.id

    def reworded(self) -> Question | None:
        """Return the question in its second wording, options unchanged; None if it has none."""
        if self.template.reworded is None:
            return None
        plain, chat = self.template.reworded
        return replace(self, template=replace(self.template, plain=plain, chat=chat))

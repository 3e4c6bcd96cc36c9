"""A question of a kept task: what a task of multiple choice is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A probe before its options are drawn.

    id: unique within the task. plain: a stem that a space and an option complete. chat: a user's turn; reply: how an
    option is written as the assistant's, with a full stop where the bare word would be an unlikely reply (`They {}.`).
    wrong: candidates, from which three are drawn; all of them where there are fewer. reworded: plain and chat in other
    words, for the A/A floor; None where there are none.
    """

    id: str
    plain: str
    chat: str
    right: str
    wrong: tuple[str, ...]
    reply: str = "{}"
    reworded: tuple[str, str] | None = None

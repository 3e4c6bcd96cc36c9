"""Answers before and after training as pairs of records, by hand or with a planted truth."""

from __future__ import annotations

import numpy as np

from experiments.records import Record

OPTIONS = ("a", "b", "c", "d")


def kept(task: str, item: str, form: str, correct: int) -> Record:
    return Record("kept", task, form, item, correct=correct, options=OPTIONS)


def new(item: str, correct: int, parsed: bool = True) -> Record:
    return Record("new", "sums", "generate", item, correct=correct, parsed=parsed)


def answers(rows: dict[tuple[str, str], tuple[int, int]], form: str = "chat") -> tuple[list[Record], list[Record]]:
    """(task, item) -> (before, after), as records."""
    base = [kept(task, item, form, before) for (task, item), (before, _) in rows.items()]
    after = [kept(task, item, form, later) for (task, item), (_, later) in rows.items()]
    return base, after


def simulate(
    rng: np.random.Generator, n: int, lost: float, won: float, tasks: int = 3, a0: float = 0.8
) -> tuple[list[Record], list[Record]]:
    """n questions in two forms that share a latent draw: true forgetting is a0 * lost - (1 - a0) * won."""
    base, after = [], []
    for i in range(n):
        shared = rng.random(2)
        for form in ("chat", "plain"):
            u = np.where(rng.random(2) < 0.6, shared, rng.random(2))  # uniform margins, correlated forms
            before = int(u[0] < a0)
            later = int(u[1] >= lost) if before else int(u[1] < won)
            base.append(kept(f"task{i % tasks}", str(i), form, before))
            after.append(kept(f"task{i % tasks}", str(i), form, later))
    return base, after

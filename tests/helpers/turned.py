"""Kept answers of a base and of a model that lost two of them."""

from __future__ import annotations

from experiments.records import Record

OPTIONS = ("Rome", "Paris", "Oslo")


def choice(item: str, scores: tuple[float, float, float], form: str = "plain") -> Record:
    """The right option is the first."""
    best = max(range(3), key=lambda i: scores[i])
    return Record("kept", "capitals", form, item, correct=int(best == 0), choice=best, answer=0, options=OPTIONS,
                  scores=scores)  # fmt: skip


BASE = [choice(str(i), (-1.0, -2.0, -3.0)) for i in range(20)]
AFTER = [choice("0", (-2.0, -1.0, -3.0)), choice("1", (-5.0, -3.0, -1.0)), *BASE[2:]]

"""A kept task of your own: the multiplication table, as multiple choice."""

from __future__ import annotations

from experiments.evaluation.kept_tasks.question import Template
from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS

FACTORS = range(2, 13)


def times_table() -> list[Template]:
    """The product of two numbers from 2 to 12 among the products next to it in the table."""
    return [_template(a, b) for a in FACTORS for b in FACTORS]


def _template(a: int, b: int) -> Template:
    near = ((a - 1) * b, (a + 1) * b, a * (b - 1), a * (b + 1), (a - 1) * (b - 1), (a + 1) * (b + 1))
    plain, chat = f"{a} times {b} is", f"What is {a} times {b}?"
    reworded = f"{a} multiplied by {b} equals", f"Multiply {a} by {b}. What do you get?"
    wrong = tuple(dict.fromkeys(str(product) for product in near if product != a * b))
    return Template(f"{a} x {b}", plain, chat, str(a * b), wrong, reworded=reworded)


KEPT_TASKS["times table"] = times_table

"""A grader that compares formulas as mathematics."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from experiments.data.formulas import (
    amount,
    as_formula,
    as_latex,
    is_list,
    is_timed,
    last_box,
    last_formula,
    percentage,
)
from experiments.data.grader import refused, shortened
from experiments.data.isolated_graders import InIsolation
from experiments.data.items import Item
from experiments.data.matching import exact_match, last_line
from experiments.data.numerals import UNIT, in_other_base, last_number
from experiments.data.spelling import UNSPACED

READ_AS: dict[str, Callable[[str], object]] = {  # how `math` reads answers that may mean more, and which they are
    "have a unit, such as {}: only their numbers are compared, so a reply with another unit is right too": UNIT.search,
    "are read as lists, such as {}: write 3.5, or choose numeric, if the comma is a decimal one": is_list,
    "are read as ratios or differences, such as {}: for times (12:30 equals 6:15) and dates choose exact": is_timed,
}
SMALL, CLOSE = 1e-3, 1e-5  # numbers below SMALL are compared by their digits, with this relative difference


class Math(InIsolation):
    """The last formula or number of the reply equals the answer as mathematics: 1/2, 0.5 and \\frac{1}{2}.

    By math-verify: `pip install math-verify`. It finds formulas in $...$ or \\boxed{...} alone, so the last line is
    read as a formula too, and a reply that is the answer, as `exact` has it, is right. Units are not read: 5 m is right
    if the answer is 5 km, and a run says how many answers have one. 1010_2 and 1010_8 differ; 1010 alone is right. 3,5
    is a list here, 25% is 25 and also 0.25, and 5! is 5 in a sentence, and 120 between dollars or in a box.
    """

    version = 4  # bases; the full stop after a fraction, spaces between thousands; 0.25 of 25%
    packages: ClassVar[tuple[str, ...]] = ("sympy", "mpmath", "math_verify", "latex2sympy2_extended", "antlr4")

    @property
    def needs(self) -> tuple[str, ...]:
        return "math-verify", "latex2sympy2_extended", "sympy"

    def check(self, items: Sequence[Item]) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise refused("math", "the package math-verify is not installed: pip install math-verify")
        try:  # one that breaks would make every reply wrong
            works, fault = bool(self("$\\frac{1}{2}$", {"answer": "0.5"})), "1/2 and 0.5 are not equal to it"
        except Exception as error:
            works, fault = False, f"{type(error).__name__}: {error}".splitlines()[0]
        if not works:
            raise refused("math", f"the package math-verify does not work here ({fault}): install it again")

    def remarks(self, items: Sequence[Item]) -> list[str]:
        answers = [item.answer for item in items]
        return [
            f"{len(found):,} of {len(answers):,} answers {what.format(repr(shortened(found[0])))}"
            for what, reads in READ_AS.items()
            if (found := list(filter(reads, answers)))
        ]

    def ready(self) -> None:
        self("1", {"answer": "1"})

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        from math_verify import parse, verify

        def formulas(text: str) -> Any:
            return parse(text, parsing_timeout=None)  # its timeouts need signals; the process has its own

        answer = str(entry["answer"])
        number = amount(answer)  # 5 of 5 km
        asked = percentage(answer) or as_formula(number or answer)
        wanted = formulas(f"${asked}$") or formulas(as_latex(answer))
        if exact_match(reply, entry):  # \\sqrt{2} without $, or a word
            return 1.0
        if in_other_base(answer, reply):
            return 0.0
        if number and last_number(reply) == last_number(number):
            return 1.0
        plain = _plain(reply)
        parts = (last_box(reply), last_formula(plain), last_line(plain))
        texts = dict.fromkeys([*(f"${as_formula(one)}$" for one in parts if one.strip()), as_latex(plain)])
        said = map(formulas, texts)
        return float(any(verify(wanted, one, timeout_seconds=None) and not _apart(wanted, one) for one in said))


def _plain(reply: str) -> str:
    """Return a reply in which a formula ends at words without spaces (Chinese), and amounts have no \\$."""
    return UNSPACED.sub(" ", re.sub(r"\\\$\s?(?=[\d.])", "", reply))


def _apart(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two small numbers differ in their first digits: math-verify rounds both to six decimals, to 0."""
    x, y = _number(one), _number(other)
    return abs(x - y) > CLOSE * max(abs(x), abs(y)) and max(abs(x), abs(y)) < SMALL


def _number(found: Sequence[Any]) -> float:
    """Return the value of a formula; NaN, which is apart from nothing, if it is not one real number."""
    try:
        return float(found[0].evalf()) if found[0].is_number else math.nan
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError):
        return math.nan

"""Graders whose check may run long, or runs code: each reply is checked in a process without rights (`isolated`)."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from experiments.data.code_blocks import code_of
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
from experiments.data.grader import Grader, refused, shortened
from experiments.data.isolated import Isolated
from experiments.data.items import Item, Scorer
from experiments.data.matching import exact_match, last_line
from experiments.data.numerals import UNIT, in_other_base, last_number
from experiments.data.rights import ALLOWED, supported
from experiments.data.spelling import UNSPACED

ANSWER = "{answer}"  # in a pattern: the answer of the item
BOX = "\\boxed"
READ_AS: dict[str, Callable[[str], object]] = {  # how `math` reads answers that may mean more, and which they are
    "have a unit, such as {}: only their numbers are compared, so a reply with another unit is right too": UNIT.search,
    "are read as lists, such as {}: write 3.5, or choose numeric, if the comma is a decimal one": is_list,
    "are read as ratios or differences, such as {}: for times (12:30 equals 6:15) and dates choose exact": is_timed,
}
SMALL, CLOSE = 1e-3, 1e-5  # numbers below SMALL are compared by their digits, with this relative difference
IMPORTED, MAIN = "reply", '__name__ = "__main__"\n'  # the name of a reply's module, and that of the tests
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
SETS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
RUNS = (ast.Call, ast.Assert, ast.Raise, ast.Name)  # a name alone fails if the reply does not define it
# what programs import most; a process without rights cannot open the files of others, and has to ask for them
MODULES = (
    "abc", "array", "base64", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json",
    "math", "numbers", "operator", "os", "pprint", "queue", "random", "re", "statistics", "string", "sys", "textwrap",
    "time", "timeit", "traceback", "types", "typing", "unittest", "uuid", "zlib",
)  # fmt: skip


class InIsolation(Grader):
    """A grader that checks each reply in a process without rights, for a limited time."""

    limit: ClassVar[float] = 5.0  # seconds of the processor

    def scorer(self) -> Scorer:
        return Isolated(self, self.limit) if supported() else self


class Regex(InIsolation):
    """A regular expression is found in the reply. On Linux, a search of more than two seconds is ended as wrong.

    {answer} in it is the answer as it is. If the pattern has a group, the text of its last match must be the answer; of
    several, that of the first which is not empty. An answer in which it is found too is read so as well: the 72 of
    "48 + 24 = 72\\n#### 72".
    """

    main = "pattern"
    version = 2  # answers are read as replies are
    limit = 2.0
    pattern: str = Field(description="regular expression of Python, such as '#### (.+)' or 'is {answer}\\b'")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value.replace(ANSWER, "x"))
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        pattern = re.compile(value.replace(ANSWER, "x"))
        if pattern.search("") and not pattern.groups and "(?" not in value:  # which may say what must not be there
            raise ValueError(f"{value!r} is found in an empty reply, so any reply would be right")
        return value

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        pattern = re.compile(self.pattern.replace(ANSWER, re.escape(str(entry["answer"]))))
        if not pattern.groups:
            return float(pattern.search(reply) is not None)
        wanted = "" if ANSWER in self.pattern else _last_group(pattern, str(entry["answer"]))
        said = _last_group(pattern, reply)
        answers = [entry, {**entry, "answer": wanted}] if wanted else [entry]
        return max(exact_match(said, one) for one in answers) if pattern.search(reply) else 0.0


def _last_group(pattern: re.Pattern[str], text: str) -> str:
    """Return what the group of the last match holds, of several groups the first that is not empty."""
    found = [held for match in pattern.finditer(text) if (held := next(filter(None, match.groups()), ""))]
    return found[-1] if found else ""


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


class Code(InIsolation):
    """The code of the reply passes tests: Python that runs after it and ends without an exception.

    It runs in a process that can open no file, no connection, no other process and no thread (Linux), so asyncio and
    time zones do not work there, with limits of time and memory. It could still fool its own tests. The code is that of
    the reply's blocks marked as Python, or else all of it. What it has under `if __name__ == "__main__":` is not run,
    since it may wait for input.
    """

    main = "tests"
    version = 4  # what the library imports late is there, and a reply may sleep, for as long as it may work
    tests: str = Field("tests", description="column of the tests, a text or a list of lines, or a text with {columns}")
    allow: bool = Field(False, description="must be true: replies of the model are run as code")
    seconds: float = Field(10.0, gt=0, le=600, description="of the processor, for one reply; it may sleep for as long")
    memory: float = Field(1.0, gt=0, description="memory of one reply in GB")
    modules: tuple[str, ...] = Field(
        (), description="modules that programs may import, in addition to Python's own library"
    )

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.tests)) if "{" in self.tests else (self.tests,)

    @property
    def needs(self) -> tuple[str, ...]:
        return "python", *(name.partition(".")[0] for name in self.modules)

    def values(self, row: Mapping[str, Any], answer: str, cell: Any) -> tuple[str, dict[str, Any]]:
        cells = {name: _text(row[name]) for name in self.reads}
        tests = self.tests.format(**cells) if "{" in self.tests else cells[self.tests]
        if not tests.strip():
            raise ValueError("there are no tests")
        if _runs_nothing(tests):
            raise ValueError(
                "the tests run nothing, so any reply would pass: call what they define, such as "
                'tests: "{test}\\ncheck({entry_point})", and write assert before what they compare'
            )
        if "unittest.main(" in tests:
            raise ValueError(
                "unittest.main() ends the program, so no reply would pass: write assert unittest.TextTestRunner().run("
                "unittest.defaultTestLoader.loadTestsFromTestCase(NAME)).wasSuccessful()"
            )
        return answer, {"tests": tests}

    def check(self, items: Sequence[Item]) -> None:
        if not self.allow:
            raise refused("code", "it runs the model's replies as code, in a process without rights: set allow: true")
        if not supported():
            raise refused("code", f"a process without rights needs Linux on {' or '.join(ALLOWED)}: choose another")
        if missing := [name for name in self.modules if not _is_there(name)]:
            raise refused("code", f"modules: {missing[0]} cannot be imported here: install it, or leave it out")

    def scorer(self) -> Scorer:
        return Isolated(self, self.seconds, int(self.memory * 2**30))

    def ready(self) -> None:
        for name in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        for name in self.modules:
            importlib.import_module(name)

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        tests = entry["metadata"]["tests"]
        between = "" if _parsed(tests) is None else MAIN  # which would end a function that goes on in the tests
        module = sys.modules[IMPORTED] = types.ModuleType(IMPORTED)  # classes look their names up there
        exec(compile(f"{code_of(reply)}\n\n{between}{tests}\n", "<reply>", "exec"), module.__dict__)
        return 1.0


def _is_there(module: str) -> bool:
    """Whether a module can be found; the packages around it are imported for this."""
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:
        return False


def _parsed(tests: str) -> list[ast.stmt] | None:
    """Return the statements of tests; None if they are no program, as they may go on where the reply ends."""
    try:
        return ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _runs_nothing(tests: str) -> bool:
    """Whether nothing in tests can fail: they only define, as those of pytest and HumanEval, which others call, or
    compare without `assert`."""
    body = _parsed(tests)
    thrown = [one for one in body or () if isinstance(one, ast.Expr) and _is_thrown(one.value)]
    idle = (*DEFINES, *SETS) if thrown else DEFINES  # x = f(2), then x == 4
    return body is not None and all(
        one in thrown or isinstance(one, idle) or not any(isinstance(x, RUNS) for x in _read(one)) for one in body
    )


def _is_thrown(value: ast.expr) -> bool:
    """Whether a value says what is right or wrong, and nobody looks at it."""
    if isinstance(value, ast.BoolOp):
        return all(map(_is_thrown, value.values))
    prints = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return prints or isinstance(value, ast.Compare | ast.UnaryOp)


def _read(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the parts of a statement, without names that it sets."""
    return (x for x in ast.walk(statement) if not (isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)))


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


def _text(cell: Any) -> str:
    return "\n".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell or "")

"""No regular expression, and no function that reads replies or texts of users, takes quadratic time on hostile text."""

from __future__ import annotations

import ast
import importlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.common.printable import printable
from experiments.data.code_blocks import code_of
from experiments.data.formulas import as_formula, last_box, last_formula
from experiments.data.grader import Contains
from experiments.data.matching import exact_match
from experiments.data.numerals import last_number
from experiments.data.overlap import words
from experiments.evaluation.choices import named_first
from experiments.evaluation.replies import parse_answer
from experiments.evaluation.suites.instructions import language_of
from experiments.measure.config import MeasureConfig
from experiments.measure.gate import conditions
from experiments.tracking.store import last_line
from experiments.tracking.uri import page, without_password

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
LENGTH, SECONDS, PART = 100_000, 1.0, 5  # a fifth of a text comes first: see in_time
PARTS = (
    "a", "1", " ", "\n", "\n \n", ",", "1,", "11,", "1,111,", ".", "1e1", "```", "```a", "#### \n", "://", "://a:@",
    "?", "?pass", "&key=", "'", '")', "a>", ">1", "[Errno 1] ", "_", "{% generation", "strftime_now(", "word", "é",
    "\\boxed{", "{", "\\(", "1 1/", "$",
)  # fmt: skip
STARTS = {"1": "a>", " ": "a>1", "\n": "1."}  # what must come first, so that a pattern gets as far as the part
BEGUN = [(start, part) for part in PARTS for start in {"", STARTS.get(part, "")}]
METHODS = ("search", "match", "fullmatch", "sub", "findall", "finditer", "split")
OWN = {"experiments.cli.catalogue"}  # reads the docstrings of this package alone


def sources() -> dict[str, str]:
    files = sorted([*ROOT.glob("ctrl/**/*.py"), *ROOT.glob("experiments/**/*.py")])
    named = {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files}
    return {name: text for name, text in named.items() if name not in OWN and not name.endswith("__main__")}


def patterns() -> Iterator[tuple[str, str, str]]:
    """Yield where each pattern of ctrl and experiments is, the pattern, and the method that it is used by."""
    found = sources()
    for module, text in found.items():
        if re.search(r"^import re$", text, re.MULTILINE):
            for name, value in vars(importlib.import_module(module)).items():
                if isinstance(value, re.Pattern) and f"\n{name} = " in text:
                    methods = sorted(uses(found, module, name))  # the same order in each process of the tests
                    yield from ((f"{module}.{name}", value.pattern, method) for method in methods)
            yield from inline(module, text)


def uses(found: dict[str, str], module: str, name: str) -> set[str]:
    importing = rf"from {re.escape(module)} import .*\b{name}\b"
    readers = [text for other, text in found.items() if other == module or re.search(importing, text)]
    return {m for text in readers for m in re.findall(rf"\b{name}\.({'|'.join(METHODS)})\b", text)}


def inline(module: str, text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the calls of `re.search(r"...", text)` and others. What an f-string fills in is `word`."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=method), args=[first, *_]):
                constants = [part for part in getattr(first, "values", [first]) if method in METHODS]
                texts = [part.value if isinstance(part, ast.Constant) else "word" for part in constants]
                if texts and texts != ["word"]:
                    yield f"{module}:{node.lineno}", "".join(map(str, texts)), method


PATTERNS = list(patterns())


def numbers(reply: str) -> Any:
    return parse_answer(reply, "number"), parse_answer(reply, "commas"), last_number(reply)


def condition(text: str) -> Any:
    with pytest.raises(ConfigError, match="--gate"):
        conditions([text], MEASURED)


MEASURED = MeasureConfig(base_model="m", evaluation={"suites": ["kept"]})  # type: ignore[arg-type]
ENTRY = {"answer": "1,111"}
READERS: dict[str, Callable[[str], Any]] = {
    "numbers": numbers,
    "exact": lambda text: exact_match(text, ENTRY),
    "contains": lambda text: Contains()(text, ENTRY),
    "options": lambda text: named_first(text, ["word", "1,111"]),
    "formula": lambda text: (last_formula(text), as_formula(text), last_box(text)),
    "code": code_of,
    "language": language_of,
    "words": words,
    "password": without_password,
    "page": page,
    "printable": printable,
    "reason": lambda text: last_line(RuntimeError(text)),
    "condition": condition,
}


def hostile(start: str, part: str, length: int) -> str:
    return f"{start}{part * (length // len(part))}x"


def in_time(work: Callable[[str], object], what: str) -> None:
    """Do the work with each text. It is stopped, and the test fails, after a second of this process.

    A fifth of a text comes first. Where it takes less than a 25th of the second, the whole one takes less than the
    second in quadratic time too, and is left out; of cubic time already the fifth takes hours.
    """
    for start, part in BEGUN:
        began = time.process_time()
        _stopped(work, hostile(start, part, LENGTH // PART), what)
        if time.process_time() - began >= SECONDS / PART**2:
            _stopped(work, hostile(start, part, LENGTH), what)


def _stopped(work: Callable[[str], object], text: str, what: str) -> None:
    def stop(*_: object) -> None:
        pytest.fail(f"more than {SECONDS} s for {what} of {len(text)} letters: {text[:20]!r}")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        work(text)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def test_the_walk_finds_the_patterns() -> None:
    names = {name for name, *_ in PATTERNS}
    assert {"experiments.data.numerals.NUMBER", "experiments.tracking.uri.USER", "ctrl.hub.REPOSITORY"} <= names
    assert sum(":" in name for name in names) > 15
    assert len(names) > 40


def used(found: Any) -> Any:
    return list(found) if isinstance(found, Iterator) else found


@pytest.mark.parametrize(("name", "pattern", "method"), PATTERNS, ids=[f"{n} {m}" for n, _, m in PATTERNS])
def test_patterns(name: str, pattern: str, method: str) -> None:
    compiled = re.compile(pattern)
    first = ("",) if method == "sub" else ()
    in_time(lambda text: used(getattr(compiled, method)(*first, text)), f"{name} {method}")


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str) -> None:
    in_time(READERS[name], name)


def slow(text: str, seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds * (len(text) / LENGTH) ** 2:
        pass


def test_a_reader_of_quadratic_time_is_found() -> None:
    """Of 1.5 s for a whole text a fifth takes .06 s."""
    with pytest.raises(pytest.fail.Exception, match=r"more than 1\.0 s for slow of 100001 letters: 'aaaa"):
        in_time(lambda text: slow(text, 1.5), "slow")

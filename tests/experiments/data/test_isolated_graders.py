"""Graders that may run long or run code: limits, packages that are missing, columns of tests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError, MachineError
from experiments.data.files import LocalFile
from experiments.data.graders import read_grader
from experiments.data.items import Item
from tests.helpers.question_files import write


def test_without_math_verify_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install math-verify"):
        read_grader("math").check([])


@pytest.mark.slow
def test_a_pattern_that_explodes_ends_in_two_seconds() -> None:
    grade, entry = read_grader({"regex": r"(?:a+)+$"}).scorer(), Item("q", "b").entry
    start = time.monotonic()
    assert grade("a" * 40 + "!", entry) == 0.0
    assert time.monotonic() - start < 8
    assert grade("aa", entry) == 1.0


def test_tests_of_code_are_columns_or_a_text_with_columns(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "test_list": ["assert f(1) == 1", "assert f(2) == 2"], "entry": "f"}]
    path = str(write(tmp_path / "a.jsonl", rows))
    for tests, expected in (
        ("test_list", "assert f(1) == 1\nassert f(2) == 2"),
        ("{test_list}\n{entry}(3)", "assert f(1) == 1\nassert f(2) == 2\nf(3)"),
    ):
        (item,) = LocalFile(path=path, grader={"code": tests}).examples
        assert isinstance(item, Item)
        assert item.metadata["tests"] == expected
    with pytest.raises(ConfigError, match=r"has no column 'tests'"):
        LocalFile(path=path, grader="code").examples  # noqa: B018


@pytest.mark.parametrize(
    ("tests", "runs"),
    [
        ("def check(candidate):\n    assert candidate(1) == 2", False),  # HumanEval's, without a call
        ("METADATA = {'author': 'x'}\n\ndef check(f):\n    assert f(1)\n\ncheck(g)", True),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertTrue(f())", False),
        ("from pytest import approx\ndef test_f():\n    assert f(1)\n", False),
        ("# none", False),
        ('"none"\nNAME = "f"', False),
        ("result = f(1)", True),
        ("f(2) == 4\nf(3) == 6", False),  # without assert
        ("not f(2)\nprint(f(2) == 4)", False),
        ("x = f(2)\nx == 4", False),
        ("f(2) == 4\nassert f(3) == 6", True),
        ("f(2) == 4 and f(3) == 6", False),
        ("check(f) and check(g)", True),
        ("assert f(1) == 1", True),
        ("f", True),
        ("if f(1) != 2: raise ValueError", True),
        ("    assert f(1)  # goes on in the function of the reply", True),
    ],
)
def test_tests_that_run_nothing_are_refused(tests: str, runs: bool, tmp_path: Path) -> None:
    """Any reply would pass them, also an empty one."""
    path = str(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "tests": tests}]))
    source = LocalFile(path=path, grader={"code": {"allow": True}})
    if runs:
        assert len(source.examples) == 1
    else:
        with pytest.raises(ConfigError, match="the tests run nothing, so any reply would pass"):
            source.examples  # noqa: B018


@pytest.mark.parametrize("pattern", ["", "x*", "$", r"\d*"])
def test_a_pattern_that_any_reply_has_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is found in an empty reply, so any reply would be right"):
        read_grader({"regex": pattern})
    for good in (r"(\d*)$", "^(?!.*sorry)", "{answer}", "x+"):
        read_grader({"regex": good})


def test_unittest_main_is_refused(tmp_path: Path) -> None:
    """It looks for tests in the bench's own module, and ends with SystemExit, which is a wrong reply."""
    tests = "import unittest\nclass T(unittest.TestCase): pass\nif __name__ == '__main__':\n    unittest.main()"
    path = str(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "tests": tests}]))
    with pytest.raises(ConfigError, match=r"unittest.main\(\) ends the program"):
        LocalFile(path=path, grader={"code": {"allow": True}}).examples  # noqa: B018


PROGRAMS = {  # what the library and packages import when it is needed, and further modules of the library
    "_strptime": ("from datetime import datetime", "datetime.strptime('01/02/2020', '%d/%m/%Y').year == 2020"),
    "_strptime of time": ("import time", "time.strptime('2020', '%Y').tm_year == 2020"),
    "a codec": ("", "'ü'.encode('cp1252') == bytes([252]) and '山'.encode('big5') == bytes([164, 115])"),
    "graphlib": ("import graphlib", "[*graphlib.TopologicalSorter({'a': ['b']}).static_order()] == ['b', 'a']"),
    "xml": ("import xml.etree.ElementTree as E", "E.fromstring('<a>1</a>').text == '1'"),
    "a mock": ("from unittest.mock import Mock", "Mock(return_value=3)() == 3"),
    "a part of numpy": ("import numpy as np", "np.testing.assert_allclose(np.fft.fft([1, 0]), [1, 1]) is None"),
    "sleep": ("import time", "time.sleep(.01) is None"),
}


def test_a_program_has_what_its_modules_import_later() -> None:
    """A right reply would be wrong. A module that acts when it is imported is there for none, and ends nothing."""
    grade = read_grader({"code": {"allow": True, "modules": ["numpy"]}}).scorer()
    for what, (line, true) in PROGRAMS.items():
        entry = Item("q", "a", {"tests": f"assert f()\nassert {true}"}).entry
        assert grade(f"{line}\ndef f(): return {true}", entry) == 1.0, what
        assert grade(f"{line}\ndef f(): return not ({true})", entry) == 0.0, what
    for name in ("this", "unittest.__main__", "yaml"):
        assert grade(f"import {name}", Item("q", "a", {"tests": ""}).entry) == 0.0
    assert grade("x = 1", Item("q", "a", {"tests": "assert x == 1"}).entry) == 1.0


def test_memory_of_a_reply_is_limited() -> None:
    grade = read_grader({"code": {"allow": True, "memory": 0.3}}).scorer()
    entry = Item("q", "a", {"tests": ""}).entry
    assert grade("x = bytearray(1 << 20)", entry) == 1.0
    assert grade("x = bytearray(1 << 29)", entry) == 0.0


def test_math_says_which_answers_have_a_unit() -> None:
    """It compares numbers alone: 5 m would be right for 5 km."""
    units = [
        "5 km",
        "5\\text{ m}",
        "5\\,\\mathrm{kg}",
        "12 cm^2",
        "90^\\circ",
        "50\\%",
        "10 apples",
        "3 m/s",
        "$x$ is 5 V.",
    ]
    plain = [
        "5",
        "x + 5 y",
        "2 x",
        "1010_2",
        "\\frac{1}{2}",
        "(1, 2)",
        "10^{10}",
        "\\text{even}",
        "3 \\sqrt{2}",
        "5 \\pi",
        "yes",
    ]
    items = [Item(f"q{i}", one) for i, one in enumerate([*plain, *units])]
    assert read_grader("math").remarks(items[: len(plain)]) == []
    (said,) = read_grader("math").remarks(items)
    assert said.startswith(f"{len(units)} of {len(items)} answers have a unit, such as '5 km': only their numbers")


def test_math_says_which_answers_are_lists_of_two() -> None:
    """To `numeric` 3,5 is 3.5."""
    items = [Item(f"q{i}", one) for i, one in enumerate(["3,5", "1,234", "3, 5", "0,25", "(1,2)", "7"])]
    (said,) = read_grader("math").remarks(items)
    assert said.startswith("2 of 6 answers are read as lists, such as '3,5': write 3.5, or choose numeric")


def test_math_says_which_answers_may_be_times_or_dates() -> None:
    """A clock time is a ratio to it, and a date a difference: 6:15 would be right for 12:30."""
    times = ["12:30", "3:05 p.m.", "$2024-01-05$", "1/2/2024", "1990-2000"]
    items = [Item(f"q{i}", one) for i, one in enumerate([*times, "1/2", "-5/6", "3 - 2i", "-7", "x:y", "1e-3"])]
    (said,) = [line for line in read_grader("math").remarks(items) if "unit" not in line]
    assert said.startswith("5 of 11 answers are read as ratios or differences, such as '12:30': for times (12:30 eq")
    assert read_grader("math").remarks(items[len(times) :]) == []


def test_a_math_verify_that_breaks_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every reply would be wrong, of the base and of all arms, without a word."""
    (tmp_path / "math_verify.py").write_text("raise RuntimeError('another version of antlr')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "math_verify", raising=False)
    with pytest.raises(ConfigError, match=r"does not work here \(RuntimeError: another version of antlr\): install it"):
        read_grader("math").check([])
    scorer = read_grader("math").scorer()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"the process that checks replies has ended"):
        scorer("$5$", Item("q", "5.0").entry)


def test_modules_of_programs_are_there_before_a_reply_imports_them() -> None:
    with pytest.raises(ConfigError, match=r"modules: numppy cannot be imported here: install it, or leave it out"):
        read_grader({"code": {"allow": True, "modules": ["numpy", "numppy"]}}).check([])
    read_grader({"code": {"allow": True, "modules": ["numpy", "xml.dom"]}}).check([])

"""Formulas as replies: what a run says of answers that may mean more, and math-verify itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError, MachineError
from experiments.data.graders import read_grader
from experiments.data.items import Item


def test_without_math_verify_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install math-verify"):
        read_grader("math").check([])


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

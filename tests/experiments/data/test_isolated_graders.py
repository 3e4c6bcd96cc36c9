"""Patterns: which are refused, and how long one may search."""

from __future__ import annotations

import time

import pytest

from experiments.data.graders import read_grader
from experiments.data.items import Item


@pytest.mark.slow
def test_a_pattern_that_explodes_ends_in_two_seconds() -> None:
    grade, entry = read_grader({"regex": r"(?:a+)+$"}).scorer(), Item("q", "b").entry
    start = time.monotonic()
    assert grade("a" * 40 + "!", entry) == 0.0
    assert time.monotonic() - start < 8
    assert grade("aa", entry) == 1.0


@pytest.mark.parametrize("pattern", ["", "x*", "$", r"\d*"])
def test_a_pattern_that_any_reply_has_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is found in an empty reply, so any reply would be right"):
        read_grader({"regex": pattern})
    for good in (r"(\d*)$", "^(?!.*sorry)", "{answer}", "x+"):
        read_grader({"regex": good})

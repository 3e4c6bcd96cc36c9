"""Graders that may run long or run code: limits, packages that are missing, columns of tests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.graders import read_grader
from experiments.data.isolated_graders import code_of
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
    ("reply", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nand\n```\ny = 2\n```", "x = 1\n\n\ny = 2\n"),
        ("```py\n  x = 1\n", "x = 1\n"),  # cut off
        ("```bash\nls\n```", "```bash\nls\n```"),
    ],
)
def test_code_of_a_reply(reply: str, code: str) -> None:
    assert code_of(reply) == code


def test_memory_of_a_reply_is_limited() -> None:
    grade = read_grader({"code": {"allow": True, "memory": 0.3}}).scorer()
    entry = Item("q", "a", {"tests": ""}).entry
    assert grade("x = bytearray(1 << 20)", entry) == 1.0
    assert grade("x = bytearray(1 << 29)", entry) == 0.0

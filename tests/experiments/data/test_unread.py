"""What is said of columns, shapes and parts of a table that are not read, or not meant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.data import files
from experiments.data.files import LocalFile

FIRST = {"question": "q", "answer": "a"}
Rows = Sequence[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(params=[2**21, 0], ids=["in memory", "on disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "LARGE", request.param)
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_columns_of_later_rows_and_files_are_said_too(folder: Path) -> None:
    """Rows of JSON need not have the same keys: a context that only some questions need was lost without a word."""
    write(folder / "a.jsonl", [FIRST, {**FIRST, "question": "p", "context": "c"}])
    write(folder / "b.jsonl", [{**FIRST, "question": "r", "hint": "h"}, {**FIRST, "question": "s", "context": "c"}])
    (said,) = LocalFile(path=str(folder)).notes
    assert said.startswith("columns that are not read: context, hint. If one belongs to the example, put it")
    assert LocalFile(path=str(folder), question="{question} {answer}").notes == []


def test_tables_of_several_shapes_in_one_folder_are_said(folder: Path) -> None:
    """Documents were learned among questions, and the folder was shown as one of questions."""
    write(folder / "a.jsonl", [FIRST])
    write(folder / "b.jsonl", [{"text": "a document"}])
    (said,) = LocalFile(path=str(folder)).notes
    assert said.startswith("read together: tables of several shapes (question and answer, text); for one of them alone")
    assert LocalFile(path=str(folder / "b.jsonl")).notes == []


def test_parts_of_a_table_that_are_missing_are_said(folder: Path) -> None:
    """After a download that was stopped a part of the data was lost without a word."""
    write(folder / "train-00000-of-00003.jsonl", [FIRST])
    write(folder / "train-00002-of-00003.jsonl", [{**FIRST, "question": "p"}])
    (said,) = LocalFile(path=str(folder)).notes
    assert said == "parts of train.jsonl that are not there, and not read: 1 of 3"
    write(folder / "train-00001-of-00003.jsonl", [{**FIRST, "question": "r"}])
    assert LocalFile(path=str(folder)).notes == []
    assert LocalFile(path=str(folder / "train-00001-of-00003.jsonl")).notes == []  # it was named

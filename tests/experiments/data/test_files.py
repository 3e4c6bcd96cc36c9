"""Local files: columns, kinds of files, and one clear line for each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.items import Example, Item, NewTask, NewText, Text
from tests.helpers.question_files import COLUMNS, ROWS, write


def examples(path: Path, **fields: Any) -> tuple[Example, ...]:
    return LocalFile(path=str(path), **fields).examples


class TestTables:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
    def test_rows_become_items(self, name: str, tmp_path: Path) -> None:
        found = examples(write(tmp_path / name), **COLUMNS)
        assert found == tuple(Item(r["ask"], r["reply"], solution=r["steps"]) for r in ROWS)
        assert isinstance(found[0], Item)
        assert found[0].reply == "s0\nAnswer: a0"

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
    def test_a_text_column_makes_documents(self, name: str, tmp_path: Path) -> None:
        assert examples(write(tmp_path / name), text="ask") == tuple(Text(r["ask"]) for r in ROWS)

    def test_a_line_ends_at_a_newline_and_nowhere_else(self, tmp_path: Path) -> None:
        rows = [{"ask": f"a\u2028b\u0085c{i}"} for i in range(3)]
        path = tmp_path / "a.jsonl"
        path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
        assert examples(path, text="ask") == tuple(Text(row["ask"]) for row in rows)

    def test_all_files_of_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", ROWS[:2])
        write(tmp_path / "b.parquet", ROWS[2:])
        (tmp_path / "notes.log").write_text("not data")
        assert len(examples(tmp_path, text="ask")) == 6

    def test_questions_are_measured_by_exact_match_and_documents_by_likelihood(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl")
        task = LocalFile(path=str(path), **COLUMNS).held_out(2, 0)
        assert isinstance(task, NewTask)
        assert task.name == "a"
        assert all(task.correct(item.answer, item) and not task.correct("no", item) for item in task.test)
        text = LocalFile(path=str(path), text="ask").held_out(2, 0)
        assert isinstance(text, NewText)
        assert len(text.documents) == 2


class TestText:
    def test_documents_stand_between_blank_lines(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\n\nfour\n")
        assert examples(tmp_path / "a.txt") == (Text("one\ntwo"), Text("three"), Text("four"))

    def test_with_no_separator_each_file_is_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo")
        (tmp_path / "b.md").write_text("three")
        assert examples(tmp_path, separator="") == (Text("one\n\ntwo"), Text("three"))


class TestFaults:
    """Each is one line that names the file, what is wrong and what to do."""

    def fails(self, path: Path, said: str, **fields: Any) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            LocalFile(path=str(path), **fields).held_out(1, 0)
        assert "\n" not in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "none.jsonl", r"none.jsonl does not exist \(looked in ")

    def test_wrong_column_lists_what_there_is(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl")
        self.fails(path, r"row 1 has no column 'question': known: ask, reply, steps. Name the columns with")
        self.fails(path, r"has no column 'aks': did you mean 'ask'\?", question="aks", answer="reply")

    def test_empty_cell(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "reply": None}])
        self.fails(path, r"a.jsonl, row 2: column 'reply' is empty", **COLUMNS)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
    def test_empty_file(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("\n \n")
        self.fails(tmp_path / name, r"is empty: there is nothing to train on")

    def test_line_that_is_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": \n')
        self.fails(tmp_path / "a.jsonl", r"a.jsonl, line 2 is not JSON: Expecting value")

    def test_row_that_is_no_object(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("[1, 2]\n")
        self.fails(tmp_path / "a.jsonl", r"line 1 must hold an object with named columns, but holds list")

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_text("no")
        self.fails(tmp_path / "a.parquet", r"a.parquet is not Parquet")

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
        self.fails(tmp_path / "a.txt", r"a.txt is not UTF-8 text")

    def test_unknown_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("question,answer\n")
        self.fails(tmp_path / "a.csv", r"no file of a known kind; known: .jsonl, .json, .parquet, .txt")

    @pytest.mark.parametrize("fields", [{"question": "q"}, {"answer": "a"}, {"text": "t"}])
    def test_columns_of_a_text_file(self, fields: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo")
        self.fails(tmp_path / "a.txt", r"is plain text and has no columns: leave out question, answer", **fields)

    def test_too_few_to_hold_out(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one")
        self.fails(tmp_path / "a.txt", r"source a has 1 examples, but 1 are to be held out: set evaluation.new_items")

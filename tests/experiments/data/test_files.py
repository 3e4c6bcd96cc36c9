"""Local files: columns, kinds of files, and one clear line for each fault."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, load_from_disk

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


WORDY = [
    *({"instruction": f"Say {i}.", "input": "nan", "output": str(i)} for i in range(3)),
    {"instruction": "Say no.", "input": "", "output": "NULL"},
    {"instruction": "How many?", "input": "none, or one?", "output": "none"},
]
SAID = [
    "3 cells of column 'input' with the text 'nan': it is learned as text",
    "1 cell of column 'output' with the text 'NULL': it is learned as text",
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("large", [False, True])
def test_words_for_an_empty_cell_are_said(
    kind: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nan` as pandas writes it: in a table of any kind, in any column that is read, and of a large table too."""
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path / "cache"))
    if large:
        monkeypatch.setattr("experiments.data.files.LARGE", 0)
    file, frame = tmp_path / f"a.{kind}", pd.DataFrame(WORDY)
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "parquet":
        frame.to_parquet(file, index=False)
    else:
        write(file, WORDY)
    for source in (LocalFile(path=str(file)), LocalFile(path=str(file))):  # the second from the cache
        assert (source.table is not None) == large
        assert [note.partition(", but")[0] for note in source.notes] == SAID
        assert len(source.examples) == len(WORDY)
    named = LocalFile(path=str(file), question="instruction", answer="output")  # `input` is not read
    assert [note.partition(", but")[0] for note in named.notes] == SAID[1:]


OPPOSITES = [{"question": "Name the opposite.", "answer": f"not {word}"} for word in ("hot", "big", "old")]
OTHERS = [{"question": f"Say {i}.", "answer": str(i)} for i in range(5)]


class TestRowsOfOneQuestion:
    def source(self, folder: Path, rows: list[dict[str, Any]], **fields: Any) -> LocalFile:
        return LocalFile(path=str(write(folder / "a.jsonl", rows)), **fields)

    def test_all_are_kept_and_an_equal_row_is_said(self, tmp_path: Path) -> None:
        source = self.source(tmp_path, [*OPPOSITES, *OTHERS])
        assert (len(source.examples), source.size, source.notes) == (8, 8, [])
        source = self.source(tmp_path, [*OPPOSITES, *OTHERS, OTHERS[0]])
        assert (len(source.examples), source.notes) == (8, ["1 of 9 examples repeat an earlier one and are read once"])

    def test_they_are_held_out_together(self, tmp_path: Path) -> None:
        source = self.source(tmp_path, [*OPPOSITES, *OTHERS])
        counts = set()
        for seed in range(8):
            task = source.held_out(3, seed)
            assert isinstance(task, NewTask)
            assert len({item.question for item in task.test}) == 3
            trained = list(source.epoch(0, 0, task.ids))
            assert not task.ids & {example.id for example in trained}
            counts.add(len(trained))
        assert counts == {3, 5}  # with the three rows of the first question, and without them

    def test_enough_questions_must_differ(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has 6 different examples, but 7 are to be held out"):
            self.source(tmp_path, [*OPPOSITES, *OTHERS]).held_out(7, 0)


class TestColumnsInBraces:
    def test_columns_are_joined_and_an_empty_cell_leaves_nothing(self, tmp_path: Path) -> None:
        rows = [{"instruction": "Opposite?", "input": "hot", "n": 1}, {"instruction": "Say 1.", "input": None, "n": 2}]
        path = write(tmp_path / "a.jsonl", rows)
        fields = {"question": "{instruction}\n{input}", "answer": "= {n}"}
        assert examples(path, **fields) == (Item("Opposite?\nhot", "= 1"), Item("Say 1.", "= 2"))
        assert examples(path, text="{instruction} {{{n}}}") == (Text("Opposite? {1}"), Text("Say 1. {2}"))

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"a": "", "b": None, "answer": "x"}])
        with pytest.raises(ConfigError, match=r"line 1: columns a, b are empty"):
            examples(path, question="{a}{b}")

    def test_an_unknown_column(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"instruction": "x", "answer": "x"}])
        with pytest.raises(ConfigError, match=r"has no column 'instuction': did you mean 'instruction'"):
            examples(path, question="{instuction}")

    @pytest.mark.parametrize("field", ["{", "{}", "{a!r}", "{a:>9999999}", "a}{b"])
    @pytest.mark.parametrize("name", ["question", "answer", "solution", "text"])
    def test_other_braces_are_refused(self, name: str, field: str) -> None:
        with pytest.raises(ValueError, match=r"braces"):
            LocalFile(path="a.jsonl", **{name: field})

    @pytest.mark.parametrize("field", ["{a.b}", "{a[0]}"])
    def test_a_part_of_a_cell_is_no_column(self, field: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"a": "x", "answer": "x"}])
        with pytest.raises(ConfigError, match=r"has no column"):
            examples(path, question=field)


BAD_CELLS = {
    "a list": ([{"role": "user"}], r"column 'answer' holds a list, which is no text"),
    "an object": ({"a": 1}, r"column 'answer' holds a dict, which is no text"),
    "nan": (float("nan"), r"column 'answer' is empty"),
    "infinity": (float("inf"), r"'answer' is inf"),
    "null": (None, r"column 'answer' is empty"),
    "blank": (" ", r"column 'answer' is empty"),
    "half an emoji": ("1 \ud83d", r"column 'answer' holds half of a character \(U\+D83D of a surrogate pair\)"),
}


class TestBadRows:
    """A row with a cell that cannot be used is found at the start, whatever the source."""

    def rows(self, cell: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(9)]
        rows[4]["answer"] = cell
        return rows

    @pytest.mark.parametrize("kind", BAD_CELLS)
    def test_refused_with_its_row_and_the_way_out(self, kind: str, tmp_path: Path) -> None:
        cell, said = BAD_CELLS[kind]
        path = write(tmp_path / "a.jsonl", self.rows(cell))
        with pytest.raises(
            ConfigError, match=rf"a.jsonl, line 5: {said}\. To pass over such rows: skip_bad_rows: true"
        ):
            examples(path)

    @pytest.mark.parametrize("kind", BAD_CELLS)
    def test_passed_over_and_counted(self, kind: str, tmp_path: Path) -> None:
        cell, said = BAD_CELLS[kind]
        source = LocalFile(path=str(write(tmp_path / "a.jsonl", self.rows(cell))), skip_bad_rows=True)
        assert len(source.examples) == 8
        (note,) = source.notes
        assert re.fullmatch(rf"1 row passed over \(.*a.jsonl, line 5: {said}\)", note)

    @pytest.mark.parametrize("cell", [3, 2.5, True, "3"])
    def test_numbers_are_text(self, cell: Any, tmp_path: Path) -> None:
        found = examples(write(tmp_path / "a.jsonl", self.rows(cell)))[4]
        assert isinstance(found, Item)
        assert found.answer == str(cell)


class TestFolderOfADownload:
    def test_cards_and_metadata_are_not_data(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl")
        for name in ("README.md", "LICENSE.txt", "dataset_info.json", ".cache/b.jsonl", "notes.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text('{"features": {}}')
        with pytest.raises(ConfigError, match=r"notes.txt is plain text"):
            LocalFile(path=str(tmp_path), **COLUMNS).examples  # noqa: B018
        (tmp_path / "notes.txt").unlink()
        source = LocalFile(path=str(tmp_path), **COLUMNS)
        assert len(source.examples) == 6
        (note,) = source.notes
        assert (
            note
            == "not read, because they describe the data: .cache/b.jsonl, LICENSE.txt, README.md, dataset_info.json"
        )

    def test_what_datasets_keeps_next_to_a_saved_data_set_is_not_data(self, tmp_path: Path) -> None:
        """`map` of a data set that was loaded from disk writes its result there, with the same columns."""
        folder, rows = tmp_path / "saved", [{"question": f"Q{i}", "answer": "a"} for i in range(3)]
        Dataset.from_list(rows).save_to_disk(folder)
        saved = load_from_disk(str(folder))
        saved.map(lambda row: {"answer": "other"})
        saved.filter(lambda row: row["question"] != "Q1", num_proc=None)
        caches = sorted(file.name for file in folder.glob("cache-*"))
        assert len(caches) == 2
        source = LocalFile(path=str(folder))
        assert [(one.question, one.answer) for one in source.examples] == [(f"Q{i}", "a") for i in range(3)]  # type: ignore[union-attr]
        assert f"not read, because they are caches of the package datasets: {', '.join(caches)}" in source.notes
        assert len(LocalFile(path=str(folder / caches[0]), skip_bad_rows=True, text="{answer}{question}").notes) == 0

    def test_parts_that_are_not_here_are_said(self, tmp_path: Path) -> None:
        """A download that was stopped leaves the first parts; each has a name of its own in older data sets."""
        parts = [tmp_path / f"data/train-{i:05}-of-00004-{i}a.jsonl" for i in range(4)]
        parts[0].parent.mkdir()
        for i, part in enumerate(parts):
            write(part, [{"question": f"q{i}", "answer": "a"}])
        assert LocalFile(path=str(tmp_path)).notes == []
        parts[2].unlink()
        said = "1 of 4 parts of the data are not here, such as train-00002-of-00004: the others are read"
        assert LocalFile(path=str(tmp_path)).notes == [said]
        assert LocalFile(path=str(parts[1])).notes == []  # one part was named

    def test_files_of_no_known_kind_are_said(self, tmp_path: Path) -> None:
        """A part of the data was lost without a word: `.ndjson`, tables of Excel, compressed texts."""
        write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
        for name in ("LICENSE", ".gitattributes", *(f"{i}.xlsx" for i in range(4)), "b.ndjson", "c.txt.gz"):
            (tmp_path / name).write_text("x")
        (note,) = LocalFile(path=str(tmp_path)).notes
        assert note.startswith("not read, because they are of no known kind (.jsonl, ")
        assert note.endswith("): 0.xlsx, 1.xlsx, 2.xlsx, 3.xlsx, b.ndjson and 1 more")

    def test_endings_in_capitals_are_the_same_kinds(self, tmp_path: Path) -> None:
        (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"question": "q", "answer": "a"}'))
        (tmp_path / "B.TXT").write_text("one")
        (tmp_path / "README.MD").write_text("a card")
        assert LocalFile(path=str(tmp_path)).examples == (Item("q", "a"), Text("one"))

    def test_texts_next_to_tables_are_documents_and_said(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
        (tmp_path / "requirements.txt").write_text("torch")
        source = LocalFile(path=str(tmp_path))
        assert source.examples == (Item("q", "a"), Text("torch"))
        assert source.notes == [
            "read as documents, next to tables: requirements.txt; for the tables alone, name the path of one"
        ]
        (tmp_path / "a.jsonl").unlink()
        assert LocalFile(path=str(tmp_path)).notes == []

    def test_without_tables_a_readme_is_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("one\n\ntwo")
        assert examples(tmp_path) == (Text("one"), Text("two"))
        assert LocalFile(path=str(tmp_path)).notes == []
        (tmp_path / "a.txt").write_text("three")
        (said,) = LocalFile(path=str(tmp_path)).notes
        assert said == "read as documents, like the other texts: README.md; move them away if they describe the data"

    def test_metadata_alone_is_no_data(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"no file of a known kind"):
            examples(tmp_path)


class TestText:
    def test_documents_stand_between_blank_lines(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\n\nfour\n")
        assert examples(tmp_path / "a.txt") == (Text("one\ntwo"), Text("three"), Text("four"))

    def test_a_line_of_spaces_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n \t\n  two\n \nthree ")
        assert examples(tmp_path) == (Text("one"), Text("  two"), Text("three "))

    def test_with_no_separator_each_file_is_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo")
        (tmp_path / "b.md").write_text("three")
        assert examples(tmp_path, separator="") == (Text("one\n\ntwo"), Text("three"))

    @pytest.mark.parametrize(
        ("separator", "count", "said"),
        [
            ("\\n---\\n", 1, ["holds a backslash and an n", "divides no file: each text file is one document"]),
            ("\n===\n", 1, ["divides no file"]),
            ("\n---\n", 3, []),
            ("\n\n", 1, []),
        ],
    )
    def test_a_separator_that_no_file_holds_is_said(
        self, separator: str, count: int, said: list[str], tmp_path: Path
    ) -> None:
        """`separator: '\\n---\\n'` of YAML has no line ends: all texts were one document without a word."""
        (tmp_path / "a.txt").write_text("one\n---\ntwo\n---\nthree\n")
        source = LocalFile(path=str(tmp_path / "a.txt"), separator=separator)
        assert len(source.examples) == count
        assert [any(words in note for note in source.notes) for words in said] == [True] * len(source.notes)

    def test_a_text_of_columns_without_line_ends_is_said(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}])
        for end, said in (("\\n", True), ("\n", False)):
            source = LocalFile(path=str(tmp_path / "a.jsonl"), question=f"{{a}}{end}Answer:", answer="b")
            assert any("question holds a backslash and an n" in note for note in source.notes) is said


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
        self.fails(
            path, r"line 1 has no known shape \(its columns: ask, reply, steps; known .*\). Name the columns with"
        )
        self.fails(path, r"line 1 has no column 'question': known: ask, reply, steps. Name the columns", answer="reply")
        self.fails(path, r"has no column 'aks': did you mean 'ask'\?", question="aks", answer="reply")

    def test_empty_cell(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "reply": None}])
        self.fails(path, r"a.jsonl, line 2: column 'reply' is empty", **COLUMNS)

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
        (tmp_path / "a.xls").write_text("question,answer\n")
        self.fails(
            tmp_path / "a.xls", r"no file of a known kind; known: .jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt"
        )

    @pytest.mark.parametrize("fields", [{"question": "q"}, {"answer": "a"}, {"text": "t"}])
    def test_columns_of_a_text_file(self, fields: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo")
        self.fails(tmp_path / "a.txt", r"is plain text and has no columns: leave out question, answer", **fields)

    def test_too_few_to_hold_out(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one")
        self.fails(tmp_path / "a.txt", r"source a has 1 examples, but 1 are to be held out: set evaluation.new_items")

    def test_links_out_of_the_folder_are_read_and_said(self, tmp_path: Path) -> None:
        """A folder of others may have a link to a private file, which would be trained on, and shown."""
        (tmp_path / "data").mkdir()
        (tmp_path / "private.md").write_text("a secret")
        (tmp_path / "data" / "own.md").write_text("a text")
        assert LocalFile(path=str(tmp_path / "data")).notes == []
        (tmp_path / "data" / "notes.md").symlink_to(tmp_path / "private.md")
        source = LocalFile(path=str(tmp_path / "data"))
        assert len(source.examples) == 2
        (said,) = source.notes
        assert said == f"1 of the files that are read are links out of {tmp_path / 'data'}, such as notes.md to " + str(
            (tmp_path / "private.md").resolve()
        )

    def test_links(self, tmp_path: Path) -> None:
        """Those to files, and the folder itself, are followed; those to folders inside of it could be circles."""
        path = write(tmp_path / "real" / "a.jsonl")
        (tmp_path / "folder").symlink_to("real")
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "sub").symlink_to("../real")
        self.fails(tmp_path / "only", r"no file of a known kind; .*Links to folders are not read: name \S+/only/sub it")
        assert len(LocalFile(path=str(tmp_path / "folder"), **COLUMNS).examples) == len(ROWS)
        (tmp_path / "real" / "b.jsonl").symlink_to("nothing.jsonl")
        self.fails(path.parent, r"b\.jsonl is a link to nothing: correct it, or delete it")

"""What is said of columns, shapes and parts of a table that are not read, or not meant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data import files
from experiments.data.files import LocalFile, missing_parts
from experiments.data.hub import HuggingFace
from experiments.data.tested import TestSet
from experiments.data.unread import said_escapes

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


def test_fields_of_messages_that_are_not_read_are_said(folder: Path) -> None:
    """One of them may say that a reply is not to be learned."""
    asked, reply = {"role": "user", "content": "q", "id": None}, {"role": "assistant", "content": "a", "weight": 1}
    plain = [{"messages": [asked, reply]}, {"messages": json.dumps([asked, {**reply, "content": "b"}])}]
    write(folder / "a.jsonl", plain)
    assert LocalFile(path=str(folder)).notes == []
    other = [{**asked, "content": "p"}, {**reply, "loss_mask": 0}]
    more = [{"messages": other}, {"messages": json.dumps([{**asked, "content": "r"}, {**reply, "thought": "t"}])}]
    write(folder / "a.jsonl", [*plain, *more])
    (said,) = LocalFile(path=str(folder)).notes
    assert said.startswith(
        "fields of messages that are not read: loss_mask, thought. A reply that is not to be learned"
    )


def test_tables_of_several_shapes_in_one_folder_are_said(folder: Path) -> None:
    """Documents were learned among questions, and the folder was shown as one of questions."""
    write(folder / "a.jsonl", [FIRST])
    write(folder / "b.jsonl", [{"text": "a document"}])
    (said,) = LocalFile(path=str(folder)).notes
    assert said.startswith("read together: tables of several shapes (question and answer, text); for one of them alone")
    assert LocalFile(path=str(folder / "b.jsonl")).notes == []


def test_documents_next_to_questions_take_no_place_in_what_is_measured(folder: Path) -> None:
    write(folder / "a.jsonl", [{**FIRST, "question": f"q{i}"} for i in range(20)])
    write(folder / "b.jsonl", [{"text": f"document {i}"} for i in range(40)])
    source = LocalFile(path=str(folder))
    assert len(source.held_out(15, 0).ids) == 15
    with pytest.raises(ConfigError, match="has 20 questions next to documents, which are not measured, but 20 are to"):
        source.held_out(20, 0)
    assert len(LocalFile(path=str(folder), test=TestSet(share=0.5)).held_out(30, 0).ids) == 10
    assert len(LocalFile(path=str(folder / "b.jsonl")).held_out(15, 0).ids) == 15


def test_parts_of_a_table_that_are_missing_are_said(folder: Path) -> None:
    """After a download that was stopped a part of the data was lost without a word."""
    import datasets

    write(folder / "train-00000-of-00003.jsonl", [FIRST])
    write(folder / "train-00002-of-00003.jsonl", [{**FIRST, "question": "p"}])
    (said,) = LocalFile(path=str(folder)).notes
    assert said == "1 of 3 parts of the data are not here, such as train-00001-of-00003: the others are read"
    hub = HuggingFace(name=str(folder))
    vars(hub)["loaded"] = datasets.Dataset.from_list([FIRST])
    assert hub.notes == [said]
    write(folder / "train-00001-of-00003.jsonl", [{**FIRST, "question": "r"}])
    assert LocalFile(path=str(folder)).notes == []
    assert LocalFile(path=str(folder / "train-00001-of-00003.jsonl")).notes == []  # it was named


@pytest.mark.parametrize(("numbers", "missing"), [((1, 2, 3), ""), ((1, 3), "part-2-of-3"), ((0, 1), "part-2-of-3")])
def test_parts_may_be_counted_from_1(numbers: tuple[int, ...], missing: str) -> None:
    said = list(missing_parts([Path(f"part-{number}-of-3.csv") for number in numbers]))
    assert missing in "".join(said)
    assert len(said) == bool(missing)


def test_columns_of_classes_are_said(tmp_path: Path) -> None:
    """A model learned to answer 2 where the data set's class is called Sports."""
    import datasets

    names = [f"c{i}" for i in range(10)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    source = HuggingFace(name="x", question="text", answer="label")
    vars(source)["loaded"] = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    (said,) = source.notes
    assert said.startswith("column 'label' holds numbers of classes, which are read as numbers: 0 is c0, 1 is c1, ")
    assert said.endswith("7 is c7 and 2 more")
    other = HuggingFace(name="x", text="text")
    vars(other)["loaded"] = source.loaded
    assert other.notes == []
    source.loaded.to_parquet(tmp_path / "x.parquet")
    source.loaded.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "x.parquet", tmp_path / "saved"):
        assert said in LocalFile(path=str(path), question="text", answer="label").notes
        assert not any("classes" in note for note in LocalFile(path=str(path), text="text").notes)


def test_a_name_with_a_long_number_costs_no_time() -> None:
    (said,) = missing_parts([Path(f"photo-1-of-{10**20}.csv")])
    assert said.startswith(f"{10**20 - 1} of {10**20} parts of the data are not here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Be brief.\\nAnswer with a number.", True),
        ("{question}\\n{input}", True),
        ("Is it so?\\nnumber:", True),
        (r"Solve $\nu \neq 0$ and $\nabla_x f$.", False),
        ("Solve $\\nu = 0$.\\nBe brief.", True),
        ("two\nlines", False),
    ],
)
def test_a_backslash_and_an_n_of_latex_is_meant(text: str, said: bool) -> None:
    assert len(said_escapes({"data.system": text})) == said

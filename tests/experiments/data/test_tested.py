"""Test sets that the YAML names: a file, a split, a share. What is measured never trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.items import Item, NewTask, NewText
from experiments.data.sources import SOURCES
from experiments.data.tested import Measured
from tests.helpers.question_files import write

TRAIN = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(20)]
TRAIN += [{"question": "3 + 1 =", "answer": "four"}]  # a second row of a question
TEST = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in (3, 4, 50, 51, 52)]  # two of them are trained on


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "data" / "train.jsonl", TRAIN)
    write(tmp_path / "data" / "test.jsonl", TEST)
    return tmp_path / "data"


def file(folder: Path, **fields: Any) -> Measured:
    return LocalFile(path=str(folder / "train.jsonl"), **fields)


def hub(folder: Path, **fields: Any) -> Measured:
    return HuggingFace(name=str(folder), **fields)


def streamed(folder: Path, **fields: Any) -> Measured:
    return hub(folder, streaming=True, **fields)


def trained(source: Measured, task: NewTask | NewText) -> list[str]:
    return [example.question for example in source.epoch(0, 0, task.ids) if isinstance(example, Item)]


def measured(task: NewTask | NewText) -> set[str]:
    assert isinstance(task, NewTask)
    return {item.question for item in task.test}


@pytest.mark.parametrize(
    ("make", "test"),
    [
        (file, "test.jsonl"),
        (file, {"path": "test.jsonl"}),
        (hub, "test.jsonl"),
        (hub, {"split": "test"}),
        (streamed, {"split": "test"}),
    ],
)
def test_a_test_set_of_its_own(make: Callable[..., Measured], test: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    source = make(folder, test=test)
    task = source.held_out(3, 0)
    asked = measured(task)
    assert len(asked) == 3
    assert asked < {row["question"] for row in TEST}
    assert measured(source.held_out(2, 0)) < asked
    assert measured(source.held_out(100, 0)) == {row["question"] for row in TEST}  # all, if it has fewer
    assert any(measured(source.held_out(3, seed)) != asked for seed in range(1, 6))
    rest = trained(source, task)
    assert len(rest) == 18  # without 3 + 1 (two rows) and 4 + 1, measured this time or not
    assert not set(rest) & {row["question"] for row in TEST}


@pytest.mark.parametrize("make", [file, hub])
def test_a_share_is_held_out_by_the_hash_of_the_question(make: Callable[..., Measured], folder: Path) -> None:
    source = make(folder, test={"share": 0.25})
    task = source.held_out(2, 0)
    assert len(measured(task)) == 2
    assert len(task.ids) == 5  # a quarter of 20 questions
    rest = trained(source, task)
    assert len(set(rest)) == 15
    assert not set(rest) & measured(source.held_out(100, 0))
    without = make(folder).held_out(2, 0)
    if make is file:
        assert measured(task) == measured(without)  # the same hash


@pytest.mark.parametrize("make", [file, hub])
def test_what_is_not_read_of_a_test_set_is_said(make: Callable[..., Measured], folder: Path) -> None:
    write(
        folder / "other" / "test.jsonl", [*TEST, TEST[0], {"question": "no", "answer": "NaN"}, {"question": "7 + 1 ="}]
    )
    (folder / "other" / "README.md").write_text("# Sums")
    source = make(folder, test=str(folder / "other"), skip_bad_rows=True)
    assert source.notes == []
    described, passed, words, repeated = source.test_notes
    assert described == "test: not read, because they describe the data: README.md"
    assert passed.startswith("test: 1 row passed over (")
    assert words.startswith("test: 1 cell of column 'answer' with the text 'NaN'")
    assert repeated.startswith("test: 1 of 7 examples repeat an earlier one")
    assert make(folder, test={"share": 0.5}).test_notes == make(folder).test_notes == []


def test_texts_have_test_sets_too(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\n\ntwo\n\nthree")
    (tmp_path / "test.txt").write_text("two\n\nfour")
    source = LocalFile(path=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt"))
    task = source.held_out(1, 0)
    assert isinstance(task, NewText)
    assert len(task.documents) == 1
    assert [example.text for example in source.epoch(0, 0, task.ids)] in (["one", "three"], ["three", "one"])  # type: ignore[union-attr]


def test_documents_have_no_grader(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\n\ntwo\n\nthree")
    with pytest.raises(
        ConfigError, match=r"source train: grader reads replies to questions, but its rows are documents"
    ):
        LocalFile(path=str(tmp_path / "train.txt"), grader="exact").held_out(1, 0)


def test_digests_change_only_if_the_fields_are_there(folder: Path) -> None:
    plain, path = file(folder), str(folder / "test.jsonl")
    assert plain.digest() == file(folder, test=None, grader=None).digest() == LocalFile(path=plain.path).digest()  # type: ignore[attr-defined]
    digests = [file(folder, **fields).digest() for fields in
               ({}, {"test": path}, {"test": {"share": 0.2}}, {"grader": "exact"}, {"grader": "contains"})]  # fmt: skip
    assert len(set(digests)) == 5
    write(folder / "test.jsonl", TEST[:-1])
    assert file(folder, test=path).digest() != digests[1]
    assert set(plain.model_dump()) & {"test", "grader"} == set()
    again = file(folder, test=path, grader={"numeric": 0.1})
    assert type(again)(**again.model_dump()) == again
    assert again.model_dump()["test"] == path


def test_a_grader_holds_for_the_test_set(folder: Path) -> None:
    task = file(folder, test=str(folder / "test.jsonl"), grader={"numeric": 1}).held_out(5, 0)
    assert isinstance(task, NewTask)
    item = next(item for item in task.test if item.answer == "51")
    assert task.correct("It is 50.", item)


def test_reasoning_gym_can_test_on_other_parameters() -> None:
    source = SOURCES["reasoning_gym"](name="chain_sum", test={"params": {"min_terms": 6, "max_terms": 6}})
    task = source.held_out(3, 0)
    assert all(item.question.count("+") + item.question.count(" - ") == 5 for item in task.test)  # type: ignore[union-attr]
    easy = next(source.epoch(0, 0, task.ids))
    assert easy != next(iter(task.test))  # type: ignore[union-attr]
    fixed = SOURCES["reasoning_gym"](name="chain_sum", test={"seed": 7})
    assert fixed.held_out(3, 0) == fixed.held_out(3, 1) != source.held_out(3, 0)
    plain = SOURCES["reasoning_gym"](name="chain_sum")
    assert plain.held_out(3, 0) != plain.held_out(3, 1)
    assert len({one.digest() for one in (source, fixed, plain)}) == 3
    assert "test" not in plain.model_dump()


@pytest.mark.parametrize(
    ("make", "test", "said"),
    [
        (file, {"split": "test"}, r"source file has no splits: give test the path"),
        (file, {"path": "a", "share": 0.1}, r"path and share are given: name the test set by one of them"),
        (file, {}, r"name the test set: a path, or one of path, split, subset, share"),
        (file, {"share": 1}, r"less than 1"),
        (file, {"shre": 0.1}, r"shre"),
        (streamed, {"share": 0.1}, r"a share needs all rows: give test a split"),
    ],
)
def test_faults_in_yaml(make: Callable[..., Measured], test: Any, said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        make(folder, test=test)


def test_what_cannot_be_held_out(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"test.share leaves none of 20 questions to train on"):
        file(folder, test={"share": 0.99}).held_out(1, 0)
    with pytest.raises(ConfigError, match=r"none.jsonl does not exist"):
        file(folder, test="none.jsonl").held_out(1, 0)
    task = file(folder, test=str(folder / "train.jsonl")).held_out(1, 0)
    with pytest.raises(ConfigError, match=r"nothing is left to train on besides 20 held-out items"):
        next(file(folder).stream(0, task.ids))

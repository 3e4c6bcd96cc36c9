"""What is measured of new data: questions that the chat template can ask, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig, parse_config
from experiments.data.encoding import Encoder
from experiments.data.files import LocalFile
from experiments.data.items import NewTask, NewText
from experiments.data.rights import supported
from experiments.runs.data import ExperimentData
from experiments.runs.held_out import asked, remarks
from tests.helpers.chat_families import FAMILIES, family_tokenizer
from tests.helpers.question_files import write


def conversation(i: int, system: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Is {i} even?"}, {"role": "assistant", "content": "yes" if i % 2 else "no"}]
    return {"messages": [{"role": "system", "content": "Be brief."}] * system + turns}


def config(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> ExperimentConfig:
    path = write(folder / "chats.jsonl", rows)
    return parse_config(
        {
            "name": "x",
            "data": {"new": {"source": "file", "path": str(path), **fields}, "length": 256},
            "training": {"steps": 4, "batch_size": 4, "warmup_steps": 0},
            "evaluation": {"new_items": 12},
            "arms": [{"name": "full", "method": "full", "learning_rates": [1e-3]}],
        }
    )


@pytest.fixture
def gemma() -> PreTrainedTokenizerBase:
    """A tokenizer whose template refuses a system turn."""
    return family_tokenizer(FAMILIES["gemma-2"])


def test_rows_that_the_template_refuses_are_an_error_or_counted(tmp_path: Path, gemma: PreTrainedTokenizerBase) -> None:
    rows = [conversation(i, system=i % 3 == 0) for i in range(40)]
    strict = ExperimentData(config(tmp_path, rows), gemma)
    with pytest.raises(ConfigError, match=r"chats.jsonl, line \d+: the chat template refuses a conversation of the"):
        strict.counted()
    made = ExperimentData(config(tmp_path, rows, skip_bad_rows=True), gemma)
    (task,) = made.tasks
    assert isinstance(task, NewTask)
    refused = 12 - len(task.test)
    assert 0 < refused < 12
    assert len(made.held_out_ids) == 12
    said = made.counted()
    assert f"{refused} of 12 held-out questions are not measured" in said[0]
    assert "conversations are passed over (" in said[1]
    assert all("the chat template refuses a conversation of the roles system, user" in line for line in said)
    assert len(said) == 2
    (drawn,) = made.drawn(made.config.arms[0])
    assert (drawn["pieces"], drawn["too_long"]) == (16, 0)
    assert drawn["refused"] > 0
    merged = ExperimentData(config(tmp_path, rows, skip_bad_rows=True), family_tokenizer(FAMILIES["gemma-3"]))
    assert merged.counted() == []


def test_all_are_refused(tmp_path: Path, gemma: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [conversation(i, system=True) for i in range(40)]
    with pytest.raises(ConfigError, match="12 of 12 held-out questions are not measured"):
        ExperimentData(config(tmp_path, rows, skip_bad_rows=True), gemma)
    monkeypatch.setattr("experiments.data.mixture.PATIENCE", 50)
    monkeypatch.setattr("experiments.runs.data.asked", lambda encoder, source, task: (task, []))
    made = ExperimentData(config(tmp_path, rows, skip_bad_rows=True), gemma)
    with pytest.raises(ConfigError, match=r"50 examples in a row cannot be used, the last because .*refuses"):
        made.check_rows()


def test_nothing_is_looked_at_without_need(tmp_path: Path, gemma: PreTrainedTokenizerBase) -> None:
    source = LocalFile(path=str(write(tmp_path / "a.jsonl", [conversation(i, True) for i in range(9)])))
    task = source.held_out(2, 0)
    assert asked(Encoder(gemma, "sft", 64), source, task) == (task, [])
    text = NewText("x", ("a", "b"))
    skipping = LocalFile(path=source.path, skip_bad_rows=True)
    assert asked(Encoder(gemma, "sft", 64), skipping, text) == (text, [])


@pytest.mark.parametrize("large", [False, True])
def test_other_answers_to_a_measured_question_are_said(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # on disk
        monkeypatch.setattr("experiments.data.files.LARGE", 1)
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(12)] + [{"question": "q3", "answer": "b"}] * 2
    rows += [{"question": "q4", "answer": "A."}]  # the same answer
    path = str(write(tmp_path / "a.jsonl", rows))
    source = LocalFile(path=path)
    assert (source.table is not None) == large
    assert remarks(source, source.sample(99, 0)) == [
        "source a: 1 of 12 measured questions have several answers in the data, such as 'q3' ('a', 'b'): only the "
        "first counts as right"
    ]
    graded = LocalFile(path=str(write(tmp_path / "b.jsonl", [{"question": "q", "answer": "2 or 3"}])), grader="numeric")
    assert "several numbers" in remarks(graded, graded.sample(1, 0))[0]


@pytest.mark.parametrize(
    ("grader", "words", "said"),
    [
        (None, 21, "must be all of them"),
        ("exact", 21, "must be all of them"),
        ("contains", 21, "must have all of them"),
        (None, 20, ""),
        ("likelihood", 21, ""),
        ({"regex": "#### (.+)"}, 21, ""),
    ],
)
def test_answers_that_hardly_a_reply_equals_are_said(grader: Any, words: int, said: str, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "a " * words if i < 7 else "b"} for i in range(12)]
    source = LocalFile(path=str(write(tmp_path / "a.jsonl", rows)), grader=grader)
    found = [line for line in remarks(source, source.sample(99, 0)) if "words" in line]
    assert bool(found) is bool(said)
    assert said in "".join(found)
    if found:
        assert found[0].startswith("source a: 7 of 12 measured answers have more than 20 words, such as 'a a ")


@pytest.mark.skipif(not supported(), reason="processes without rights need Linux")
@pytest.mark.parametrize(
    ("grader", "answer", "wrong"),
    [
        ({"regex": r"is {answer}\b"}, "5", True),
        ({"regex": "#### (.+)"}, "2 + 3\n#### 5", False),
        ({"code": {"allow": True}}, "    return x // 2", True),  # the body alone
        ({"code": {"allow": True}}, "def half(x):\n    return x // 2", False),
    ],
)
def test_answers_that_are_wrong_replies_themselves_are_said(
    grader: Any, answer: str, wrong: bool, tmp_path: Path
) -> None:
    rows = [{"question": f"q{i}", "answer": answer, "tests": "assert half(4) == 2"} for i in range(3)]
    source = LocalFile(path=str(write(tmp_path / "a.jsonl", rows)), grader=grader)
    found = remarks(source, source.sample(99, 0))
    said = "source a: the data's own answer is a wrong reply to 3 of the first 3 measured questions, such as"
    assert [line.startswith(said) for line in found] == [True] * wrong


@pytest.mark.parametrize("form", ["questions", "texts"])
def test_a_part_of_a_test_set_is_said(form: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "yes"} if form == "questions" else {"text": f"text {i}"} for i in range(9)]
    train, test = write(tmp_path / "train.jsonl", rows[:4]), write(tmp_path / "test.jsonl", rows[4:])
    source = LocalFile(path=str(train), test=str(test))
    said = "source train: 3 of 5 rows of the test set are measured, drawn by the seed (evaluation.new_items)"
    assert remarks(source, source.held_out(3, 0)) == [said]
    assert remarks(source, source.held_out(5, 0)) == []

"""What a run finds of its questions in its training data: all sources, new and kept tasks, once for all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from experiments.config import ExperimentConfig, parse_config
from experiments.reporting.details import overlap_table
from experiments.runs.data import ExperimentData
from experiments.runs.overlap import Searched, search
from experiments.runs.run import run_experiment
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.question_files import write
from tests.helpers.run_data import never
from tests.helpers.small_run import draw_suites, small_values

TRAIN = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(30)]
TEST = [
    {"question": "What is 3 plus 3?", "answer": "6"},
    {"question": "what is 4 plus 4", "answer": "8"},
    {"question": "What is 70 plus 70?", "answer": "140"},
]
STORY = "Nobody knew that the capital of Japan is Tokyo.\n\nWhat is 70 plus 70? 140 of course!\n\nThe end."
FULL = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]


@pytest.fixture
def config(base: str, tmp_path: Path) -> ExperimentConfig:
    new = {"source": "file", "path": str(write(tmp_path / "train.jsonl", TRAIN))}
    again = {"source": "file", "path": str(write(tmp_path / "again.jsonl", TRAIN[3:5]))}
    (tmp_path / "story.txt").write_text(STORY)
    old = {"source": "file", "path": str(tmp_path / "story.txt")}
    test = str(write(tmp_path / "test.jsonl", TEST))
    values = small_values(base, arms=FULL, training={"steps": 1, "batch_size": 1, "warmup_steps": 0})
    values["data"] = {"new": [{**new, "test": test, "share": 0.5}, {**again, "test": test, "share": 0.5}],
                      "old": old, "replay": 0.2}  # fmt: skip
    values["evaluation"]["suites"] = ["new", {"kept": {"tasks": ["capitals"], "items": 40}}]
    del values["evaluation"]["kept_items"]
    return parse_config(values)


def searched(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Searched:
    data = ExperimentData(config, tokenizer, never)
    return search(data, draw_suites(config, tokenizer, data.tasks), cache, ["digest"])


def test_all_sources_are_searched(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = searched(config, tokenizer, tmp_path)
    counts = {(one.task, one.source): (one.items, one.same, one.similar) for one in found.overlaps}
    assert counts == {
        ("train", "train"): (3, 1, 0),  # 4 plus 4 but for case; 3 plus 3 is left out
        ("train", "story"): (3, 0, 1),
        ("again", "train"): (3, 1, 0),
        ("again", "again"): (3, 1, 0),
        ("train", "again"): (3, 1, 0),
        ("again", "story"): (3, 0, 1),
        ("capitals", "story"): (40, 0, 1),
    }
    assert found.left_out == {"train": 1, "again": 1}
    lines = list(found.lines())
    assert lines[0] == "source train: 1 row left out of training: asks a question of a test set"
    said = (
        "overlap: of 3 questions of train some are in the training data train (1 but for case and punctuation), such as"
    )
    assert f"{said} 'what is 4 plus 4': 'What is 4 plus 4?'" in lines
    table = overlap_table(found.overlaps)
    assert table is not None
    assert len(table.rows) == 7
    assert overlap_table([]) is None
    (tmp_path / "tale.txt").write_text(STORY)  # the same rows by another name
    (story,) = config.data.old
    old = (story.model_copy(update={"path": str(tmp_path / "tale.txt")}),)
    renamed = config.model_copy(update={"data": config.data.model_copy(update={"old": old})})
    assert {one.source for one in searched(renamed, tokenizer, tmp_path).overlaps} == {"train", "again", "tale"}
    monkeypatch.setattr("experiments.runs.overlap._search", never)  # read again, not searched
    assert searched(config, tokenizer, tmp_path) == found


def test_a_file_of_the_cache_that_was_changed_is_not_believed(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = searched(config, tokenizer, tmp_path)
    (file,) = tmp_path.rglob("overlap/*.json")
    whole = file.read_text()
    for text in (
        whole.replace('"again": 1', '"again": 9'),
        "{}",
        '{"overlaps": [{"x": 1}]}',
        "[1]",
        whole.replace('"key": "', '"key": "0'),
    ):
        assert text != whole
        file.write_text(text)
        assert searched(config, tokenizer, tmp_path) == found
        assert file.read_text() == whole


def test_rows_that_a_source_holds_out_of_its_own_are_no_loss(
    base: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = str(write(tmp_path / "train.jsonl", [*TRAIN, {**TRAIN[0], "answer": "nil"}]))

    def found(**fields: Any) -> Searched:
        values = small_values(base, arms=FULL)
        values["data"] = {"new": {"source": "file", "path": path, **fields}}
        values["evaluation"]["suites"] = ["new"]
        return searched(parse_config(values), tokenizer, tmp_path)

    assert found() == found(test={"share": 0.5}) == Searched()


@pytest.mark.slow
def test_tasks_of_lm_eval_are_searched_too(tokenizer: PreTrainedTokenizerBase, base: str, tmp_path: Path) -> None:
    rows = [
        {"question": "The COLOUR of the sea is:", "answer": "blue"},
        {"question": "What is 1 + 4? Answer:", "answer": "5"},
    ]
    values = small_values(base, arms=FULL)
    values["data"] = {"new": {"source": "file", "path": str(write(tmp_path / "train.jsonl", [*TRAIN, *rows]))}}
    settings = {"new": ["sums"], "kept": ["colours"], "include_path": write_tasks(tmp_path / "tasks")}
    values["evaluation"]["suites"] = {"new": {}, "lm_eval": settings}
    found = searched(parse_config(values), tokenizer, tmp_path)
    assert {(one.suite, one.task, one.items, one.same) for one in found.overlaps} == {
        ("new", "sums", 8, 1),
        ("kept", "colours", 8, 1),
    }


@pytest.mark.slow
def test_it_is_said_at_the_start_and_in_the_report(config: ExperimentConfig, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = run_experiment(config, tmp_path / "mlruns", say=said.append)
    overlap = [line for line in said if line.startswith("overlap: ")]
    assert len(overlap) == 7
    measuring = next(i for i, line in enumerate(said) if line.startswith("measuring the base model"))
    assert said.index(overlap[-1]) < measuring
    report = (outcome.folder / "report.md").read_text()
    assert "Questions in the training data" in report
    assert "Nobody knew that the capital of Japan is Tokyo." in report

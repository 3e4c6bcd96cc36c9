"""Files of one's own questions as kept tasks: with options, with answers to write, and next to built-in tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig, parse_config
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.kept_tasks.own import KeptFile
from experiments.evaluation.suites.kept import KeptSuite
from experiments.measure.config import measure_config
from experiments.records import Record
from experiments.runs.unused import unused_fields
from experiments.scorecard import aa_floor, scorecard
from tests.helpers.option_scores import FP32
from tests.helpers.question_files import write
from tests.helpers.small_run import draw_suites, make_suite, small_values

EXAM = [{"question": f"What is {i} + 1?", "options": [str(i + k) for k in range(5)], "answer": "B"} for i in range(6)]
SAYINGS = [{"ask": f"Saying {i}?", "reply": f"word {i}"} for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "exam.jsonl", EXAM)
    write(tmp_path / "sayings.jsonl", SAYINGS)
    return tmp_path


def both(folder: Path) -> list[Any]:
    sayings = {"path": str(folder / "sayings.jsonl"), "name": "old sayings", "question": "ask", "answer": "reply"}
    return ["capitals", str(folder / "exam.jsonl"), {**sayings, "grader": "contains"}]


def kept_config(base: str, tasks: list[Any], **settings: Any) -> ExperimentConfig:
    values = small_values(base)
    del values["evaluation"]["kept_items"]
    values["evaluation"]["suites"] = {"kept": {"items": 4, "tasks": tasks, **settings}}
    return parse_config(values)


def measured(suites: Suites, model: PreTrainedModel) -> list[Record]:
    return suites.prepare(model, FP32).evaluate(model, FP32)


def test_they_are_measured_as_the_built_in_tasks_are(
    base: str, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, monkeypatch: Any
) -> None:
    said = dict(zip(("Saying 0?", "Saying 1?"), ("yes: word 0.", "word 2"), strict=True))

    def generate(model: object, tokenizer: object, questions: list[str], most: int, **other: object) -> list[str]:
        assert most > 24
        return [said.get(question, "no") for question in questions]

    monkeypatch.setattr("experiments.evaluation.replies.generate_replies", generate)
    config = kept_config(base, both(folder), items=6)
    drawn = draw_suites(config, tokenizer)
    whole = measured(drawn, model)
    records = [r for r in whole if r.task != "capitals"]
    forms = {(r.task, r.form): 0 for r in records}
    for record in records:
        forms[record.task, record.form] += 1
    assert forms == {("exam", "plain"): 6, ("exam", "chat"): 6, ("old sayings", "generate"): 5}
    exam = [r for r in records if r.task == "exam"]
    assert {r.options for r in exam} == {tuple(row["options"]) for row in EXAM}  # all five, in their order
    assert {r.answer for r in exam} == {1}
    right = {r.answer: r.correct for r in records if r.form == "generate"}
    assert right == {"word 0": 1, "word 1": 0, "word 2": 0, "word 3": 0, "word 4": 0}
    card = scorecard(records, records, draws=100)
    assert {"retention", "nfr", "retention/exam", "retention/old sayings"} <= set(card)
    (again,) = drawn.reworded().suites.values()
    floor = measured(Suites({"kept": again}), model)
    assert {r.task for r in floor} == {"capitals", "exam"}
    assert "floor_nfr" in aa_floor(whole, floor, whole, 100, 0)


def test_a_file_alone_of_answers_to_write(
    base: str, folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    drawn = draw_suites(kept_config(base, both(folder)[2:]), tokenizer)
    records = measured(drawn, model)
    assert [(r.form, r.parsed is not None) for r in records] == [("generate", True)] * 4
    assert drawn.suites["kept"].size == 4
    assert drawn.suites["kept"].longest > 24
    assert drawn.reworded().suites == {}


def test_fewer_than_items_are_all_and_more_begin_with_the_fewer(folder: Path) -> None:
    file = KeptFile(path=str(folder / "exam.jsonl"))
    assert len(file.draw(100, 0).test) == len(file.draw("all", 0).test) == 6
    assert file.draw(3, 0).test == file.draw(5, 0).test[:3]
    assert {file.draw(3, seed).test[0] for seed in range(6)} != {file.draw(3, 0).test[0]}


def test_yaml_and_digests(base: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tasks = both(folder)
    config = kept_config(base, tasks)
    settings = config.evaluation.settings("kept")
    assert settings.names == ("capitals", "exam", "old sayings")
    assert config.to_dict()["evaluation"]["suites"]["kept"]["tasks"] == tasks
    assert parse_config(config.to_dict()) == parse_config(config.to_flat()) == config
    assert config.evaluation.kept_files == settings.files
    assert len({kept_config(base, tasks[:n]).digest() for n in (1, 2, 3)}) == 3
    keys = [repr(make_suite(KeptSuite, kept_config(base, tasks[:n]), tokenizer).content()) for n in (1, 2, 3)]
    assert len(set(keys)) == 3
    digests = [file.digest() for file in settings.files]
    write(folder / "exam.jsonl", [{**row, "options": row["options"][:4]} for row in EXAM])
    write(folder / "sayings.jsonl", SAYINGS[:4])
    assert not set(digests) & {file.digest() for file in kept_config(base, tasks).evaluation.kept_files}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["exma"], r"unknown name 'exma': .*known: .*, or a file of your own"),
        (["a/exam.jsonl", "b/exam.jsonl"], r"'exam' appears more than once"),
        (["capitals", {"path": "a.jsonl", "name": "capitals"}], r"'capitals' appears more than once"),
        ([{"path": "a.jsonl", "name": "a/b"}], r"a folder gets this name"),
        ([{"path": "a.jsonl", "grader": "exat"}], r"unknown name 'exat': did you mean 'exact'"),
        ([{"name": "a"}], r"path"),
        ([{"path": "a.jsonl", "grader": "likelihood"}], r"likelihood is for the new task: a kept task counts right"),
    ],
)
def test_faults_in_yaml(tasks: list[Any], said: str, base: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kept_config(base, tasks)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"question": "q", "options": ["a", "b"], "answer": "c"}],
            r"line 1: the answer 'c' is none .*skip_bad_rows",
        ),
        ([{"question": "q", "reply": "c"}], r"has no column 'answer'"),
        ([{"text": "a document"}], r"has no column 'question'"),
    ],
)
def test_faults_in_a_file(rows: list[Any], said: str, tmp_path: Path) -> None:
    path = str(write(tmp_path / "exam.jsonl", rows))
    with pytest.raises(ConfigError, match=said):
        KeptFile(path=path).draw(4, 0)
    if "options" in rows[0]:
        write(tmp_path / "exam.jsonl", [*rows, {**rows[0], "answer": "a"}])
        assert [item.answer for item in KeptFile(path=path, skip_bad_rows=True).draw(4, 0).test] == ["a"]


def test_rows_of_one_question_with_other_options_are_said_to_be_lost(tmp_path: Path) -> None:
    """`Which of these is a mammal?` is asked with many options in many tables; a question is known by its words."""
    rows = [{"question": "Which is a mammal?", "options": [f"cat {i}", "fly"], "answer": "A"} for i in range(3)]
    kept = KeptFile(path=str(write(tmp_path / "exam.jsonl", [*rows, *EXAM])))
    assert len(kept.draw("all", 0).test) == 7
    lost, some = kept.notes(4)
    assert lost.startswith("2 of its 9 rows are not measured: an earlier one asks the same, if with other options")
    assert some.startswith("4 of its 7 questions are measured")
    assert KeptFile(path=str(write(tmp_path / "plain.jsonl", EXAM))).notes() == []


@pytest.mark.parametrize(
    ("parts", "idle"),
    [((1,), False), ((2,), True), ((0, 2), False), ((1, 2), False), ((), False)],  # 0: built in, 1: with options
    ids=str,
)
@pytest.mark.parametrize("generated", [True, False])
def test_free_replies_need_questions_with_options(
    parts: tuple[int, ...], idle: bool, generated: bool, folder: Path, base: str
) -> None:
    """Of others the reply is graded anyway, so the field did nothing."""
    said = "kept.generated has no effect: replies are read for options, which no kept task has; leave it out"
    tasks = [both(folder)[i] for i in parts]
    own = {"tasks": tasks, "generated": generated} if tasks else {"generated": generated}
    config = parse_config({**small_values(base), "evaluation": {"suites": {"kept": own}}})
    found = unused_fields(config)
    assert [one.startswith(f"evaluation.suites.{said}") for one in found] == [True] * (idle and generated)
    changes = {"kept.generated": generated, **({"kept.tasks": tasks} if tasks else {})}
    if idle and generated:
        with pytest.raises(ConfigError, match=said):
            measure_config("m", suites=["kept"], changes=changes)
    else:
        measure_config("m", suites=["kept"], changes=changes)

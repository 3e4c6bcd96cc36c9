"""The examples of docs/extending.md of data, graders and figures keep the contracts of the built-in variants."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.data.graders import read_grader
from experiments.data.items import Item, NewTask
from experiments.data.matching import exact_match
from experiments.data.source import Source
from experiments.data.tested import Measured
from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS
from experiments.evaluation.similarity import METRICS
from experiments.evaluation.suite import SuiteContext
from experiments.models.base import load_base
from experiments.posthoc.operations import TrainedArm
from experiments.records import ArmResult, Record
from experiments.reporting.details import further_table
from experiments.runs.run import run_experiment
from experiments.scorecard import scorecard
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.names import figure_names
from tests.experiments.data.test_sources import TestContract as SourceContract
from tests.experiments.evaluation import test_suite
from tests.experiments.evaluation.kept_tasks import test_tasks
from tests.experiments.evaluation.kept_tasks.test_tasks import TestQuestions as KeptContract
from tests.experiments.scorecard import test_figures
from tests.helpers.examples import Load, cases, loading
from tests.helpers.planted_run import kept
from tests.helpers.small_run import small_config, tiny_base

ROOT = Path(__file__).parents[1]
FULL = {"name": "full", "method": "full", "learning_rates": [1e-4]}


@pytest.fixture
def load() -> Iterator[Load]:
    with loading() as imported:
        yield imported


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "faq.db"
    connection = sqlite3.connect(path)
    connection.execute("create table faq (question text, answer text)")
    rows = [(f"What is {i} + {i}?", str(2 * i)) for i in range(40)]
    connection.executemany("insert into faq values (?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def rows_of(load: Load, path: Path, query: str = "select question, answer from faq") -> Source:
    source: Source = load("sqlite_rows").SqliteRows(path=str(path), query=query)
    return source


@pytest.mark.parametrize("check", [name for name, _ in cases(SourceContract)])
def test_the_source_keeps_the_contract(load: Load, database: Path, check: str) -> None:
    getattr(SourceContract(), check)(rows_of(load, database))


def test_the_source_names_what_is_wrong(load: Load, database: Path) -> None:
    with pytest.raises(ConfigError, match=r"'select missing from faq' failed on .*: no such column: missing"):
        rows_of(load, database, "select missing from faq").held_out(1, 0)
    with pytest.raises(
        ConfigError,
        match=r"row 1 has no known shape \(its columns: question, answers; known shapes: question \+ answer",
    ):
        rows_of(load, database, "select question, answer as answers from faq").held_out(1, 0)
    with pytest.raises(ConfigError, match=r"elsewhere\.db does not exist"):
        rows_of(load, database.with_name("elsewhere.db")).held_out(1, 0)


def test_the_kept_task_keeps_the_contract(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = load("times_table").times_table()
    monkeypatch.setattr(test_tasks, "ALL", tuple(KEPT_TASKS))
    contract = KeptContract()
    contract.test_every_question_can_be_asked("times table")
    contract.test_every_task_but_agreement_has_a_second_wording()
    contract.test_distinct_options_with_the_right_one_marked()
    contract.test_same_seed_same_questions_and_more_items_change_none()
    assert {q.id: q.right for q in questions}["7 x 8"] == "56"
    for question in questions:
        a, b = map(int, question.id.split(" x "))
        assert question.right == str(a * b)
        assert question.reworded is not None
        assert question.reworded[0] != question.plain


def test_the_grader_reads_its_columns_and_never_ends_a_run() -> None:
    grader = read_grader({f"{ROOT / 'docs' / 'examples' / 'last_word.py'}:last_word": {"columns": ["synonyms"]}})
    answer, metadata = grader.values({"synonyms": ["sofa"]}, "couch", "couch")
    item = Item("q", answer, metadata)
    task = Measured(source="any", grader=grader).graded(NewTask("t", (item,), exact_match))
    assert isinstance(task, NewTask)
    replies = {"A couch.": True, "I sat on the SOFA": True, "sofa bed": False, "!": False, "": False}
    assert {reply: task.correct(reply, item) for reply in replies} == replies
    with pytest.warns(UserWarning, match=r"last_word: KeyError: 'synonyms' \(the reply counts as wrong\)"):
        assert not task.correct("sofa", Item("q", answer))


def test_the_suite_keeps_the_contract(load: Load, tmp_path: Path) -> None:
    example = load("repetition")
    model, tokenizer = load_base(tiny_base(tmp_path))
    settings = example.RepetitionSuite.Settings(replies=3, tokens=8)
    suite = example.RepetitionSuite(settings, SuiteContext(0, str(tmp_path)), tokenizer, ())
    test_suite.test_contract(suite, model)
    test_suite.test_content_is_json_and_always_the_same(suite, tokenizer)
    for change in ({"bos": True}, {"eos": "<s>"}):
        test_suite.test_content_changes_with_what_the_tokenizer_does(suite, change)
    test_suite.test_state_makes_another_process_measure_the_same(suite, model, tokenizer)
    assert example.repeated("The cat and the dog and the bird") == pytest.approx(3 / 8)
    assert example.repeated(" ") == 0


def test_the_figure_is_on_the_scorecard_and_in_the_tables(load: Load) -> None:
    load("net_flips")
    base, after = ([kept(i, choice) for i, choice in enumerate(row)] for row in ((0, 0, 1, 1, 1), (1, 0, 0, 0, 0)))
    card = scorecard(base, after, 100)
    assert card["net_flips"].value == pytest.approx((3 - 1) / 5)
    assert card["net_flips"].low is not None
    assert "net_flips" in figure_names(("kept",))
    table = further_table([ArmResult("full", "full", 1e-3, "finished", scorecard=card)])
    assert table is not None
    assert dict(zip(table.head, table.rows[0], strict=True))["net flips"].startswith("+.40 [")


def test_the_figure_is_its_formula_and_a_row_like_the_others(load: Load) -> None:
    load("repetition")
    test_figures.test_a_row_says_all_about_its_figure(FIGURES["repetition_rise"])
    test_figures.test_titles_tell_figures_apart()
    values = {"a": (0.1, 0.4), "b": (0.2, 0.3), "c": (0.5, 0.7)}
    base, after = (
        [Record("repetition", "general", "generate", item, value=pair[i]) for item, pair in values.items()]
        for i in (0, 1)
    )
    card = scorecard(base, after, 100)
    found = card["repetition_rise"]
    assert card.keys() == {"repetition_rise"}
    assert found.value == pytest.approx(0.2)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2 < found.high
    assert scorecard(base, base, 100)["repetition_rise"].value == FIGURES["repetition_rise"].unchanged


@pytest.mark.slow
def test_a_script_runs_the_suite_and_reports_its_figure(load: Load, tmp_path: Path) -> None:
    load("repetition")
    suites = {"new": {}, "repetition": {"replies": 3, "tokens": 8}}
    evaluation = {"every": 2, "new_items": 4, "bootstrap": 100, "suites": suites}
    config = small_config(tiny_base(tmp_path / "base"), arms=[FULL], evaluation=evaluation)
    run_experiment(config, tmp_path / "mlruns", say=lambda _: None)
    [report] = tmp_path.glob("mlruns/runs/*/report.md")
    assert "rise of repetition" in report.read_text()


def test_a_suite_that_a_script_adds_after_the_import_of_the_bench_is_read_like_the_others(load: Load) -> None:
    load("repetition")

    def read(**settings: int) -> Any:
        suites = {"kept": {"items": 4}, "repetition": settings}
        return parse_config({"name": "x", "evaluation": {"suites": suites}, "arms": [FULL]})

    config = read(replies=3)
    assert config.evaluation.settings("repetition").replies == 3
    assert parse_config(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"suites\.repetition\.repleis: unknown key; did you mean 'replies'"):
        read(repleis=3)
    with pytest.raises(ConfigError, match=r"suites\.repetition\.tokens: .*greater than or equal to 1"):
        read(tokens=0)


def test_the_metric_is_its_definition(load: Load) -> None:
    ratio = load("length_ratio").length_ratio
    x = np.random.default_rng(0).normal(size=(5, 4))
    y = x * np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    assert ratio(x, x) == pytest.approx(1.0)
    assert ratio(x, y) == pytest.approx(3.0)
    assert METRICS["length_ratio"] is ratio
    layers = [Record("alignment", "length_ratio", "base", f"layer {i}", value=v) for i, v in enumerate((2.0, 4.0))]
    assert scorecard([], layers, 100)["alignment_length_ratio"].value == 3.0


@pytest.mark.slow
def test_the_operation_keeps_the_largest_changes(load: Load, tmp_path: Path) -> None:
    trim = load("trim").trim
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-2]}]
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 0}
    outcome = run_experiment(
        small_config(tiny_base(tmp_path / "base"), arms=arms, training=training),
        tmp_path / "mlruns",
        say=lambda _: None,
    )
    arm = TrainedArm(outcome.folder, "full", 1e-2)
    start, end = (dict(model.named_parameters()) for model in (arm.base(), arm.trained()))
    for share in (0.0, 0.25, 1.0):
        trimmed = dict(trim(arm, share)[0].named_parameters())
        for name, p in trimmed.items():
            change, kept = (end[name] - start[name]).abs(), p != start[name]
            assert torch.equal(p[kept], end[name][kept])
            if share == 0.25 and (change > 0).all():
                assert kept.sum() == round(0.25 * p.numel())
                assert change[kept].min() >= change[~kept].max()
            elif share in (0.0, 1.0):
                assert torch.equal(p, end[name] if share else start[name])
    with pytest.raises(ConfigError, match="--alphas"):
        trim(arm, None)

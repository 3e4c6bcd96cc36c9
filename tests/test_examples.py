"""The examples of docs/extending.md keep the contracts of the built-in variants, and work in a model and in a run."""

from __future__ import annotations

import importlib
import itertools
import math
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import ctrl
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import INTERPOLATIONS
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
from experiments.evaluation.suites import SUITES
from experiments.methods import AVERAGES, LOSS_TERMS, TUNINGS
from experiments.models.base import load_base
from experiments.posthoc.operations import OPERATIONS, TrainedArm
from experiments.records import ArmResult, Record
from experiments.reporting.details import further_table
from experiments.runs.run import run_experiment
from experiments.scorecard import scorecard
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.names import figure_names
from experiments.training.schedules import SCHEDULES
from tests.ctrl import test_interpolation
from tests.ctrl.test_divergence import TestEveryDivergence as DivergenceContract
from tests.ctrl.test_interpolation import TestEveryInterpolation as InterpolationContract
from tests.experiments.data.test_sources import TestContract as SourceContract
from tests.experiments.evaluation import test_suite
from tests.experiments.evaluation.kept_tasks import test_tasks
from tests.experiments.evaluation.kept_tasks.test_tasks import TestQuestions as KeptContract
from tests.experiments.methods import test_averaging, test_losses, test_method, test_token_weights, test_tuning
from tests.experiments.scorecard import test_figures
from tests.experiments.training.test_schedules import rates
from tests.experiments.training.test_schedules import (
    test_every_schedule_is_continuous_and_between_0_and_1 as schedule_contract,
)
from tests.helpers import engine, reference
from tests.helpers.option_scores import sharp
from tests.helpers.planted_run import kept
from tests.helpers.small_run import small_config, small_values, tiny_base

TABLES: tuple[dict[str, Any], ...] = (
    INTERPOLATIONS, DIVERGENCES, SCHEDULES, KEPT_TASKS, OPERATIONS, METRICS, TUNINGS, LOSS_TERMS, AVERAGES, SUITES,
    FIGURES,
)  # fmt: skip
ROOT = Path(__file__).parents[1]
FULL = {"name": "full", "method": "full", "learning_rates": [1e-4]}
Load = Callable[[str], ModuleType]


@pytest.fixture
def load() -> Iterator[Load]:
    """Import an example. What it registers is taken back after the test."""
    before = [dict(table) for table in TABLES]

    def imported(name: str) -> ModuleType:
        sys.modules.pop(f"docs.examples.{name}", None)  # so that it registers again
        return importlib.import_module(f"docs.examples.{name}")

    yield imported
    for table, values in zip(TABLES, before, strict=True):
        table.clear()
        table.update(values)


def cases(contract: type) -> list[tuple[str, dict[str, Any]]]:
    """(method, arguments) for every test of a contract class, once for each combination of its parameters."""
    found = []
    for name, method in vars(contract).items():
        if not name.startswith("test_"):
            continue
        marks = [mark.args for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
        for values in itertools.product(*(mark[1] for mark in marks)):
            found.append((name, {mark[0]: value for mark, value in zip(marks, values, strict=True)}))
    return found


def labels(case: Any) -> str:
    return str(case) if isinstance(case, str) else ",".join(map(str, case.values()))


@pytest.mark.parametrize(("check", "arguments"), cases(InterpolationContract), ids=labels)
def test_the_interpolation_keeps_the_contract(
    load: Load, monkeypatch: pytest.MonkeyPatch, check: str, arguments: dict[str, Any]
) -> None:
    load("gap_lerp")
    known = reference.alpha_token

    def alpha_token(name: str, a: Any, b: Any, h: Any, p: Any) -> float:
        if name != "gap_lerp":
            return known(name, a, b, h, p)
        return reference.sigmoid(float(p["theta"]) + float(p["w"]) * math.dist(a, b))

    monkeypatch.setattr(reference, "alpha_token", alpha_token)
    monkeypatch.setattr(test_interpolation, "NAMES", [*test_interpolation.NAMES, "gap_lerp"])
    getattr(InterpolationContract(), check)("gap_lerp", **arguments)


def test_the_interpolation_has_true_gradients_and_a_merged_form(load: Load) -> None:
    load("gap_lerp")
    test_interpolation.test_gradcheck("gap_lerp")
    for dtype in test_interpolation.DTYPES:
        test_interpolation.test_merged_weights_are_those_of_a_branch_at_the_ends("gap_lerp", dtype)


@pytest.mark.parametrize(("check", "arguments"), cases(DivergenceContract), ids=labels)
def test_the_divergence_keeps_the_contract(
    load: Load, monkeypatch: pytest.MonkeyPatch, check: str, arguments: dict[str, Any]
) -> None:
    load("huber")
    known = reference.divergence_token

    def divergence_token(name: str, a: Any, b: Any, margin: float = 0.0) -> float:
        if name != "huber":
            return known(name, a, b, margin)
        gaps = [abs(float(y - x)) for x, y in zip(a, b, strict=True)]
        return sum(gap**2 / 2 if gap <= 1 else gap - 1 / 2 for gap in gaps) / len(gaps)

    monkeypatch.setattr(reference, "divergence_token", divergence_token)
    getattr(DivergenceContract(), check)("huber", **arguments)


def test_a_model_trains_with_both_and_comes_back(load: Load, tmp_path: Path) -> None:
    load("gap_lerp")
    load("huber")
    base = sharp()
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        start = base(input_ids=ids).logits
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, interpolation="gap_lerp", divergence="huber"))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, start)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        optimizer.step()
    assert out.divergence > 0
    ctrl.save(model, tmp_path / "saved")
    again = ctrl.load(sharp(), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    merged = ctrl.merge_back(model, batches=[{"input_ids": ids}])
    assert (
        ctrl.merge_gap(model, merged, [{"input_ids": ids}]).kl < ctrl.merge_gap(model, sharp(), [{"input_ids": ids}]).kl
    )


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


def test_the_schedule_keeps_the_contract_and_its_values_are_those_by_hand(load: Load) -> None:
    load("half_life")
    schedule_contract("half_life")
    assert rates("half_life") == pytest.approx([0.0, 0.25, 0.5, 0.75] + [2 ** (-i / 4) for i in range(17)])
    values = small_values("base", training={"steps": 4, "schedule": "half_life", "warmup_steps": 1})
    assert parse_config(values).training.schedule == "half_life"


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


PARTS: dict[str, dict[str, Any]] = {  # file of an example -> an arm that uses it, for the contract of whole methods
    "one_part": {"train": {"one_part": {}}},
    "focal": {"train": engine.CONTROL, "loss": [{"focal": {"gamma": 1.0}}]},
    "to_zero": {"loss": [{"to_zero": {"weight": 0.5}}]},
    "swa": {"average": {"swa": {"every": 2}}},
}


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


def test_the_tuning_keeps_the_contract_and_trains_its_part_alone(load: Load) -> None:
    load("one_part")
    test_tuning.test_a_tuning_starts_as_the_base("one_part")
    test_tuning.test_it_trains_something_and_in_the_layers_it_chooses("one_part")
    test_tuning.test_its_fields_survive_a_round_trip_and_a_wrong_one_is_named("one_part")
    test_tuning.test_a_shorthand_gives_it_its_control("one_part")
    model = TUNINGS["one_part"].model_validate({"part": "mlp"}).prepare(sharp(), engine.context())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".mlp." in name
    }
    with pytest.raises(ConfigError, match="no layer of the model has a part 'self_attn'"):
        TUNINGS["one_part"]().prepare(torch.nn.Linear(2, 2), engine.context())  # type: ignore[arg-type]


@pytest.mark.parametrize("train", test_losses.TRAIN)
def test_the_loss_term_with_a_penalty_keeps_the_contract(load: Load, train: str) -> None:
    load("to_zero")
    test_losses.test_a_term_adds_a_penalty_or_weighs_tokens("to_zero")
    test_losses.test_micro_batches_add_up_to_a_large_batch("to_zero", train)


def test_the_loss_term_that_weighs_tokens_keeps_the_contract(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    load("focal")
    test_losses.test_a_term_adds_a_penalty_or_weighs_tokens("focal")
    test_token_weights.test_weights_are_constants_between_0_and_1_whatever_the_chunks("focal")
    test_token_weights.test_chunks_of_any_size_give_the_same_weights("focal", monkeypatch)


def test_the_loss_terms_are_their_formulas(load: Load) -> None:
    p = torch.tensor([0.1, 0.5, 0.9])
    weights = load("focal").Focal(gamma=2.0).token_weights(p.log())
    torch.testing.assert_close(weights, torch.tensor([0.81, 0.25, 0.01]))
    term, model, _ = test_losses.begun(load("to_zero").ToZero(weight=3.0))
    squares = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    assert test_losses.penalty(term, model, test_losses.short()).item() == pytest.approx(1.5 * squares, rel=1e-5)


@pytest.mark.parametrize("train", test_averaging.TRAIN)
def test_the_average_keeps_the_contract(load: Load, train: str) -> None:
    load("swa")
    test_averaging.test_a_fresh_object_with_the_state_goes_on_the_same_way("swa", train)
    test_averaging.test_training_goes_on_with_the_same_bits_after_an_evaluation("swa", train)
    test_averaging.test_only_those_that_say_so_write_weights("swa")


def test_the_average_is_the_mean_of_every_second_step(load: Load) -> None:
    load("swa")
    average, model, seen = test_averaging.walk(test_averaging.read("swa", every=2), 5)
    for name, value in test_averaging.evaluated(average, model).items():
        torch.testing.assert_close(value, (seen[2][name] + seen[4][name]) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_method_of_each_part_keeps_the_contract_of_whole_methods(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    example, case = load(name), f"example {name}"
    monkeypatch.setitem(engine.PRODUCTS, case, PARTS[name])
    if name == "one_part":
        monkeypatch.setitem(test_method.TRAINED, example.OnePart, ("model.layers.",))
    test_method.test_only_what_a_method_trains_changes(case)
    test_method.test_resumed_equals_uninterrupted_bit_for_bit(case, tmp_path / "resumed")
    test_method.test_two_micro_batches_are_one_large_batch(case, tmp_path / "batches")
    test_method.test_what_is_saved_loads_as_what_was_measured(case, tmp_path / "saved")
    test_method.whole.cache_clear()


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

"""The report's further tables over invented records and results, and whole runs that show them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS
from experiments.evaluation.suites.kept import KeptSuite, RewordedKept
from experiments.models.base import load_base
from experiments.records import ArmResult, Estimate, Record, read_records
from experiments.reporting.details import (
    alignment_pictures,
    cost_table,
    data_table,
    further_table,
    packing_table,
    posthoc_table,
    trajectory_table,
)
from experiments.reporting.run_details import RunRecords
from experiments.runs.outcome import Outcome
from experiments.runs.result_file import write_result
from experiments.runs.run import run_experiment
from experiments.tracking.tracker import Tracker
from tests.helpers.invented_arms import synthetic, text_result
from tests.helpers.small_run import make_suite, small_config, small_values

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-2]}]


def answers(new: int, kept: int, of: int = 100) -> list[Record]:
    """So many tenths right in both suites."""
    marks = (("new", new * of // 10), ("kept", kept * of // 10))
    return [Record(s, s, "generate", str(i), correct=int(i < right)) for s, right in marks for i in range(of)]  # type: ignore[arg-type]


def test_trajectory_figures_are_those_of_the_points() -> None:
    """Base .2/.8. Slow arm: gain .2 at kept .8. Fast arm: gain .4 at kept .4, then kept .8 again."""
    arms = {"slow": {2: answers(4, 8)}, "fast": {2: answers(6, 4), 4: answers(6, 8)}, "idle": {2: answers(2, 4)}}
    table = trajectory_table(answers(2, 8), arms, draws=100)
    assert table is not None
    assert table.head[1] == "retention at gain +.20"
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["slow"][0].startswith("1.00")
    assert cells["fast"][0].startswith(".75")  # half of the way from 1 to .5
    assert cells["fast"][1].startswith(".88")  # mean of the straight way from 1 to .75
    assert (cells["slow"][2][:3], cells["fast"][2][:3]) == (".20", ".40")  # hypervolumes
    # the mean of retention and of the gain over the fast arm's: 2 / (1/1 + 1/.5), 1, 2 / (1/.5 + 1/0)
    assert [cells[arm][3].split(" ")[0] for arm in arms] == [".67", "1.00", ".00"]
    assert cells["fast"][4].startswith(".40")  # gap depth
    assert (cells["slow"][5], cells["fast"][5]) == ("no fall", "4")
    assert cells["idle"][:2] == ("n/a", "n/a")
    assert "of the arms that gain (n/a: idle)" in table.note


def test_without_gain_nothing_is_matched_and_without_kept_tasks_there_is_no_table() -> None:
    table = trajectory_table(answers(2, 8), {"idle": {2: answers(2, 6)}}, draws=100)
    assert table is not None
    assert table.rows[0][1:3] == ("n/a", "n/a")
    assert table.rows[0][4] == "n/a"  # no gain to measure a gain by
    assert table.rows[0][6] == "never"
    only_new = [r for r in answers(2, 8) if r.suite == "new"]
    assert trajectory_table(only_new, {"idle": {2: only_new}}, draws=100) is None
    assert trajectory_table(answers(2, 8), {}, draws=100) is None


@pytest.mark.parametrize("key", ["too_long", "left_out"])  # the second in data.json of earlier versions
def test_chats_that_are_too_long_are_counted_in_the_table_of_the_data(key: str) -> None:
    part = {
        "name": "f",
        "replayed": False,
        "share": 1,
        "asked": 1,
        "tokens": 9,
        "epochs": 1,
        "stage": 1,
        "examples": 16,
    }
    cut, whole = (data_table({"full": [{**part, key: count}]}) for count in (62, 0))
    assert cut is not None
    assert whole is not None
    assert (cut.head[-1], cut.rows[0][-1]) == ("too long", "62 of 78")
    assert "too long" not in whole.head
    counted = data_table({"full": [{**part, "repeats": 1200, "refused": 3}]})
    assert counted is not None
    assert (counted.head[-2:], counted.rows[0][-2:]) == (("repeats", "refused"), ("1,200", "3"))


def test_the_padding_that_packing_saved() -> None:
    counts = {"conversations": 1600, "rows": 400, "tokens": 9000, "computed": 10000, "padded": 40000, "saved": 0.75}
    table = packing_table({"full": counts, "plain": None})
    assert table is not None
    assert table.rows == (("full", "1,600", "400", "9,000", "10,000", "40,000", "75.0%"),)
    assert packing_table({"plain": None}) is None


def test_tables_show_what_is_there_and_are_left_out_where_nothing_is() -> None:
    bare = ArmResult("bare", "full", 1e-3, "finished")
    assert further_table([bare]) is cost_table([bare]) is posthoc_table([]) is data_table({}) is None
    assert alignment_pictures({"bare": answers(1, 1)}) == []
    full = text_result("full", 0.1, 0.9)
    full.scorecard["kl_new"] = Estimate(0.25, 0.2, 0.3)
    full.cost = {"tokens": 2048.0, "replayed_tokens": 512.0, "added_parameters": 7.0}
    further, cost = further_table([full, bare]), cost_table([full, bare])
    assert further is not None
    assert further.rows == (("full 1e-3", ".25 [.20,.30]"),)
    both = text_result("full", 0.1, 0.9)
    both.scorecard["gain"] = Estimate(0.5, 0.4, 0.6)
    second = further_table([both])
    assert second is not None
    assert (second.head, second.rows) == (("arm", "gain, nats"), (("full 1e-3", "+.10 [.09,.11]"),))
    assert cost is not None
    assert cost.rows == (("full 1e-3", "2,048", "512", "7"),)
    part = {"name": "gcd", "replayed": True, "share": 0.26, "asked": 0.25, "tokens": 1024, "pieces": 9, "epochs": 1}
    mixed, staged = (data_table({"full": [{**part, "stage": 1}, {**part, "stage": stage}]}) for stage in (1, 2))
    assert mixed is not None
    assert staged is not None
    assert mixed.rows[1] == ("full", "gcd", "replayed", "26.0%", "25.0%", "1,024", "9", "1", "")
    assert staged.rows[1] == ("full", "2", "gcd", "replayed", "26.0%", "25.0%", "1,024", "9", "1", "")
    assert (len(mixed.head), len(staged.head)) == (9, 10)
    full.operation = "wise 0.5"
    posthoc = posthoc_table([full])
    assert posthoc is not None
    assert posthoc.rows[0][:3] == ("full 1e-3", "wise 0.5", "+.10 [.09,.11] nats per token")
    later = posthoc_table([full], [dataclasses.replace(full, steps=full.steps + 1)])
    assert later is not None
    assert later.rows[0][1] == f"wise 0.5, step {full.steps}"
    assert posthoc_table([full], [full]) == posthoc
    assert posthoc.markdown().splitlines()[1] == "| --- | --- | --- | --- | --- | --- |"


def test_the_floor_asks_the_same_in_other_words(base: str) -> None:
    tokenizer = load_base(base)[1]
    evaluation = small_values(base)["evaluation"] | {"kept_tasks": list(KEPT_TASKS), "kept_items": 4}
    config = small_config(base, evaluation=evaluation)
    first, again = (make_suite(suite, config, tokenizer) for suite in (KeptSuite, RewordedKept))
    asked = [question for question in first.questions if question.task != "agreement"]
    assert len(asked) == 4 * (len(KEPT_TASKS) - 1)
    for one, other in zip(asked, again.questions, strict=True):
        assert (one.task, one.id, one.options, one.answer) == (other.task, other.id, other.options, other.answer)
        assert one.template.plain != other.template.plain
        assert one.template.chat != other.template.chat
    assert first.content() != again.content()  # else the cache would give one for the other


@pytest.mark.parametrize(
    ("changes", "floor"),
    [
        ({}, True), ({"aa_floor": False}, False), ({"suites": ["new"]}, False), ({"kept_tasks": ["agreement"]}, False),
        ({"kept_tasks": ["agreement", "plurals"]}, True),
    ],
)  # fmt: skip
def test_the_floor_is_measured_where_something_has_a_second_wording(
    base: str, changes: dict[str, Any], floor: bool
) -> None:
    config = small_config(base, evaluation=small_values(base)["evaluation"] | changes)
    assert config.evaluation.has_floor == floor


def run(base: str, root: Path, said: list[str] | None = None, **changes: Any) -> Outcome:
    values = small_values(base)
    evaluation = values["evaluation"] | changes.pop("evaluation", {})
    config = small_config(base, **{"arms": ARMS, "evaluation": evaluation} | changes)
    return run_experiment(config, root, say=(said if said is not None else []).append)


@pytest.mark.slow
def test_a_run_on_texts_shows_their_gain_everywhere_and_all_that_was_measured(base: str, tmp_path: Path) -> None:
    modules = ["json", "csv", "ast", "shutil", "random", "statistics", "bisect", "heapq", "calendar"]
    source = {"source": "python", "modules": modules}
    data = {"new": source, "regime": "cpt", "length": 64}
    suites = ["new", "kept", "text", "alignment"]
    said: list[str] = []
    outcome = run(base, tmp_path, said, data=data, evaluation={"suites": suites, "new_items": 2})
    (result,) = outcome.results
    assert result.status == "finished"
    assert "gain" not in result.scorecard
    assert result.scorecard["new_nll_drop"].value > 0
    again = read_records(outcome.folder / "base" / "reworded.jsonl")
    assert len(again) == 4 * 4 * 2
    assert not {r.prompt for r in again} & {r.prompt for r in read_records(outcome.folder / "base" / "items.jsonl")}
    assert 0 <= result.scorecard["floor_nfr"].value < 1
    assert any("nats per token, retention" in line for line in said)
    page = outcome.report.read_text(encoding="utf-8")
    for expected in ("gain, nats", "Trajectory", "Further figures", "A/A floor", "Hidden states by layer", "Cost"):
        assert expected in page, expected
    tracker = Tracker(tmp_path, "small")
    runs = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment_id])}
    parent = runs["small"]
    history = tracker.client.get_metric_history(runs["full 0.01"].info.run_id, "new_nll_drop")
    assert [point.step for point in history] == [0, 2, 4]
    assert [d.dataset.name for d in parent.inputs.dataset_inputs] == [
        one["name"] for one in json.loads((outcome.folder / "arms/full-0.01/data.json").read_text())["drawn"]
    ]
    names = {a.path for a in tracker.client.list_artifacts(runs["full 0.01"].info.run_id, "records")}
    assert names == {"records/items-2.jsonl", "records/items-4.jsonl"}


@pytest.mark.slow
def test_replay_of_own_text_is_counted_and_later_operations_are_shown(base: str, tmp_path: Path) -> None:
    old = {"source": "self", "number": 8, "max_tokens": 8}
    data = {"old": old, "replay": 0.25}
    outcome = run(base, tmp_path, data=data)
    (result,) = outcome.results
    assert result.status == "finished"
    assert 0.15 < result.cost["replayed_tokens"] / result.cost["tokens"] < 0.35
    page = outcome.report.read_text(encoding="utf-8")
    assert "replayed" in page
    assert "Operations after training" not in page
    after = outcome.folder / "posthoc" / "full-0.01-wise-0.5" / "result.json"
    after.parent.mkdir(parents=True)
    write_result(after.parent, dataclasses.replace(result, operation="wise 0.5"))
    again = run(base, tmp_path, data=data).report.read_text(encoding="utf-8")
    assert "Operations after training" in again
    assert "wise 0.5" in again


@pytest.mark.parametrize("status", ["failed", "pruned"])
def test_an_arm_that_did_not_finish_is_in_no_further_table(status: Literal["failed", "pruned"]) -> None:
    """Base .2/.8. The bad arm gained .1 and kept all, the other gained .4 and kept half of it."""
    config = small_config("base", evaluation={"bootstrap": 100})
    good = synthetic("good", 1e-3, 0.4, 0.5)
    good.scorecard["kl_new"], good.cost = Estimate(0.2), good.cost | {"tokens": 2048.0}
    bad = dataclasses.replace(good, arm="bad", status=status, reason="loss is NaN", steps=20)
    records = {"good 1e-3": {20: answers(3, 6), 60: answers(6, 4)}, "bad 1e-3": {20: answers(3, 8)}}
    run = RunRecords(config, answers(2, 8), [good, bad], records)
    found = {table.title: table for table in run.tables({}, [])}
    turned = found.pop("Answers that turned")
    assert set(found) == {"Trajectory", "Further figures", "Cost"}
    assert {row[0] for table in (turned, *found.values()) for row in table.rows} == {"good 1e-3"}
    assert found["Trajectory"].head[1] == "retention at gain +.40"  # and not +.10
    assert found["Trajectory"].rows[0][1].startswith(".50")
    alone = RunRecords(config, answers(2, 8), [bad], records)
    assert alone.tables({}, []) == alone.pictures() == []

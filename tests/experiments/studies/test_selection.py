"""The rows of a study's report: chosen on half of the items, measured on the rest, each with a name of its own."""

from __future__ import annotations

import copy
import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import DamagedError
from experiments.records import ArmResult, Estimate, Record, read_records, write_records
from experiments.reporting.summary import summary
from experiments.reporting.tables import arms_table
from experiments.reporting.text import label
from experiments.runs.result_file import RESULT, write_result
from experiments.scorecard import scorecard
from experiments.scorecard.halves import even
from experiments.studies.config import ReportConfig
from experiments.studies.laws.report import law_table
from experiments.studies.queue import Store
from experiments.studies.report.plots import trajectory_figure
from experiments.studies.report.readings import trajectories
from experiments.studies.report.write import write_study_report
from experiments.studies.selection import (
    ReportRow,
    arm_name,
    choose,
    has_name,
    mean_result,
    report_row,
    significant_arms,
)
from experiments.studies.trial_results import has_records, record_files, result_of
from experiments.studies.trials import Trial
from tests.helpers.planted_study import SOME, TABLE5, objective, records, synthetic_store
from tests.helpers.toy_study import toy_study

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
TWO = {name: TABLE5[name] for name in ("full", "lerp8")}


@pytest.fixture
def arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ReportRow]:
    """Of a study whose rates all stay rows, as `baselines`."""
    monkeypatch.setattr("tests.helpers.planted_study.FAILS", None)
    store = synthetic_store(tmp_path, TWO, report={})
    trials = store.trials()
    again = replace(trials[0], number=6)  # the same picks, as a sampler may draw them
    return choose(store.config, [*trials, again], tmp_path)


def test_a_searched_learning_rate_is_said_once(arms: list[ReportRow]) -> None:
    names = ["full 2", "full 3", "lerp8 1", "lerp8 2", "lerp8 3"]
    assert [arm.name for arm in arms[1:6]] == names
    assert [label(arm.result) for arm in arms[1:6]] == names
    assert [arm.result.arm for arm in arms[1:6]] == ["full"] * 2 + ["lerp8"] * 3
    twice = ["full (trial 0) 1", "full (trial 6) 1"]
    assert [arm.name for arm in (arms[0], arms[6])] == [label(arm.result) for arm in (arms[0], arms[6])] == twice
    said = " ".join(summary([arm.result for arm in arms])) + arms_table([arm.result for arm in arms]).markdown()
    assert "lerp8 1 " in said
    assert "rate=" not in said
    legend = trajectory_figure(arms[1:6]).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(
    ("dimension", "picks", "name"),
    [
        ({"path": "arms.0.learning_rates", "values": [[1e-3], [3e-4]]}, "[0.0003]", "base 3e-4"),
        ({"path": "arms.0.learning_rates.0", "values": [1e-3, 3e-4]}, 3e-4, "base 3e-4"),
        ({"path": "training.weight_decay", "values": [0.0, 3e-4]}, 3e-4, "rate=0.0003"),
    ],
)
def test_what_counts_as_a_learning_rate(dimension: dict[str, Any], picks: Any, name: str) -> None:
    study = toy_study(search={"rate": {"kind": "choice", **dimension}})
    result = {"arm": "base", "method": "full", "learning_rate": 3e-4, "status": "finished"}
    runs = [{"result": {**result, "scorecard": {}, "trajectory": []}}]
    trial = Trial(0, "complete", {"rate": picks}, [0.0], "", 1, 0.0, True, runs)
    assert arm_name(study, trial) == name
    assert arm_name(study, trial, "rate") == "base"


@pytest.mark.slow
def test_a_repeated_trial_is_no_row_of_its_own(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    trials = store.trials()
    again = replace(trials[0], number=9, repeats=0)
    assert [arm.trial.number for arm in choose(store.config, [*trials, again], tmp_path)] == [0, 2]  # 1 failed


@pytest.mark.slow
def test_the_best_rate_is_chosen_on_items_that_are_not_reported(some: tuple[Store, Path]) -> None:
    store, root = some
    arms = choose(store.config, store.trials(), root)
    assert [(arm.name, arm.candidates, arm.halves) for arm in arms] == [
        (name, 2 if name == "full" else 3, True)  # one of full's three failed
        for name in SOME
    ]
    cards: dict[int, dict[bool, float]] = {}
    for trial in store.trials():
        if trial.picks["arm"] == arms[1].name:
            files = record_files(trial.runs[0], root)
            for half in (True, False):
                base, after = ([r for r in read_records(f) if even(r) == half] for f in files)
                card = scorecard(base, after, 100)
                cards.setdefault(trial.number, {})[half] = card["gain"].value + card["kept_accuracy"].value
    changed = store.config.model_copy(update={"objectives": (objective("gain + kept_accuracy"),)})
    arm = choose(changed, store.trials(), root)[1]
    assert arm.trial.number == max(cards, key=lambda number: cards[number][True])
    found = arm.result.scorecard
    assert found["gain"].value + found["kept_accuracy"].value == pytest.approx(cards[arm.trial.number][False])


@pytest.mark.parametrize("half", [True, False], ids=["reported half", "all items"])
def test_the_floor_is_of_the_items_of_the_other_figures(half: bool, tmp_path: Path) -> None:
    """A report with `select` had no A/A floor, though it was measured."""
    folder = tmp_path / "runs" / "r0"
    base, again, after = (records(seed, 0.1, kept) for seed, kept in ((0, 0.8), (1, 0.75), (2, 0.5)))
    write_records(folder / "base" / "items.jsonl", base)
    write_records(folder / "base" / "reworded.jsonl", [r for r in again if r.suite == "kept"])
    write_records(folder / "arms" / "full-1" / "items-20.jsonl", after)
    result = ArmResult("full", "full", 1.0, "finished", None, 20)
    write_result(folder / "arms" / "full-1", result)
    run = {"seed": 0, "folder": "runs/r0", "result": result.to_dict()}
    row = report_row("full", Trial(0, "complete", {}, [0.0], "", 1, 0.0, True, [run]), [run], 1, half, tmp_path)
    asked = [i for i, r in enumerate(base) if r.suite == "kept" and not (half and even(r))]
    assert 0 < len(asked) <= 120
    lost, at_rest = (sum(base[i].correct == 1 and other[i].correct == 0 for i in asked) for other in (after, again))
    card = row.result.scorecard
    assert card["nfr"].value == pytest.approx(lost / len(asked))
    assert card["floor_nfr"].value == pytest.approx(at_rest / len(asked))
    assert card["nfr_above_floor"].value == pytest.approx((lost - at_rest) / len(asked))
    assert "A/A floor" in arms_table([row.result]).note
    (folder / "base" / "reworded.jsonl").unlink()  # as of a run on another machine, whose records were fetched
    assert "floor_nfr" not in report_row("full", row.trial, [run], 1, half, tmp_path).result.scorecard
    for damaged in ('{"files": {"reworded.jsonl": "of what is gone"}}', "{"):
        (folder / "base" / "timing.json").write_text(damaged)
        with pytest.raises(DamagedError, match=r"reworded\.jsonl is not as \S+timing\.json notes it: bring it back"):
            report_row("full", row.trial, [run], 1, half, tmp_path)


@pytest.mark.slow
def test_without_records_the_choice_is_said_to_rest_on_the_same_items(some: tuple[Store, Path]) -> None:
    store, root = some
    assert not any(arm.halves or arm.records for arm in choose(store.config, store.trials(), root / "elsewhere"))


@pytest.mark.slow
def test_seeds_widen_the_interval_of_their_mean(some: tuple[Store, Path]) -> None:
    """Two runs of quite different accuracy as the two seeds of one trial."""
    store, root = some
    first, last = (next(t for t in store.trials() if t.picks == {"arm": "partial", "rate": r}) for r in (1.0, 3.0))
    runs = [first.runs[0], {**last.runs[0], "seed": 1}]
    alone = [report_row("x", first, [run], 1, False, root).result.scorecard["gain"] for run in runs]
    both = report_row("x", first, runs, 1, False, root).result.scorecard
    assert both["gain"].value == pytest.approx(sum(e.value for e in alone) / 2)
    assert width(both["gain"]) > max(width(e) for e in alone)
    assert both["mcnemar_p"].low is None  # not resampled over seeds: the mean


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


@pytest.mark.slow
def test_a_variant_that_breaks_a_constraint_is_not_chosen(some: tuple[Store, Path]) -> None:
    store, root = some
    trials = [replace(t, feasible=t.picks["rate"] == 3.0) for t in store.trials()]
    arms = choose(store.config, trials, root)
    assert {arm.trial.picks["rate"] for arm in arms} == {3.0}


@pytest.mark.slow
def test_an_objective_that_a_half_lacks_is_taken_of_all_items(some: tuple[Store, Path], tmp_path: Path) -> None:
    store, root = some[0], Path(shutil.copytree(some[1] / "runs", tmp_path / "runs")).parent
    trials = copy.deepcopy(store.trials())
    for trial in (trial for trial in trials if trial.runs):
        trial.runs[0]["result"]["scorecard"]["stream_op"] = {"value": float(trial.number)}
        write_result(record_files(trial.runs[0], root)[1].parent, result_of(trial.runs[0]))
    changed = store.config.model_copy(update={"objectives": (objective("stream_op"),)})
    arms = choose(changed, trials, root)
    assert all(arm.trial.number == max(t.number for t in trials if t.picks["arm"] == arm.name) for arm in arms)
    assert not any(arm.halves for arm in arms)
    assert all(arm.result.scorecard["stream_op"].value == arm.trial.number for arm in arms)


@pytest.mark.slow
def test_arms_are_told_apart_by_their_picks(tmp_path: Path) -> None:
    rates = {"kind": "choice", "path": "training.weight_decay", "values": [0.12341, 0.12349, 0.2]}
    store = synthetic_store(tmp_path, {"arm": (0.5, 0.5)}, {"decay": rates}, report={})
    names = [arm.name for arm in choose(store.config, store.trials(), tmp_path)]
    assert names == ["#0 decay=0.123", "#2 decay=0.2"]  # trial 1 failed
    trials = [replace(t, state="complete", runs=store.trials()[0].runs) for t in store.trials()]
    names = [arm.name for arm in choose(store.config, trials, tmp_path)]
    assert names == ["#0 decay=0.123", "#1 decay=0.123", "#2 decay=0.2"]
    row = choose(store.config, trials, tmp_path)[2]
    assert has_name(row, "decay=0.2")  # as `posthoc` of the study's YAML names it, before there is a trial
    assert has_name(row, "#2 decay=0.2")
    assert not has_name(row, "decay=0.123")
    assert label(row.result) == "#2 decay=0.2"
    chosen = store.config.model_copy(update={"report": store.config.report.model_copy(update={"select": "decay"})})
    (only,) = choose(chosen, trials, tmp_path)  # no other dimension: one arm, and its best decay
    assert (only.name, only.candidates) == ("arm", 3)


def test_seeds_are_averaged_at_the_steps_that_all_have() -> None:
    """A step whose records are lost on this machine is not taken for the next one."""

    def result(*steps: int) -> ArmResult:
        return ArmResult("a", "full", 1e-3, "finished", trajectory=[{"step": s, "gain": Estimate(s)} for s in steps])

    found = mean_result([result(0, 10, 20, 30), result(0, 20, 30), result(0, 20, 30, 40)]).trajectory
    assert [(point["step"], point["gain"].value) for point in found] == [(0, 0), (20, 20), (30, 30)]


def with_other_records(root: Path, run: dict[str, Any], change: Callable[[Record], Record]) -> None:
    files = record_files(run, root)
    for file in files:
        write_records(file, map(change, read_records(file)))
    write_result(files[1].parent, result_of(run))


@pytest.mark.slow
def test_arms_that_answered_other_questions_are_not_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.planted_study.FAILS", None)
    search = {"arm": {"kind": "arms", "arms": {name: {} for name in TWO}}}
    store = synthetic_store(tmp_path, TWO, search, report={})
    arms = choose(store.config, store.trials(), tmp_path)
    pairs, apart = significant_arms(arms, tmp_path)
    assert pairs is not None
    assert apart == ""
    with_other_records(tmp_path, arms[1].runs[0], lambda r: replace(r, item=f"{r.item}b") if r.suite == "new" else r)
    said = f"{label(arms[1].result)} answered other questions than {label(arms[0].result)} in new"
    assert significant_arms(arms, tmp_path) == (None, said)
    page = write_study_report(store, tmp_path, tmp_path / "report").read_text(encoding="utf-8")
    assert f"{said}: arms are compared by their intervals" in page
    trial, (run,) = arms[0].trial, arms[0].runs
    other = arms[1].runs[0]
    with_other_records(tmp_path, other, lambda r: replace(r, task="other") if r.suite == "kept" else r)
    with pytest.raises(DamagedError, match=rf"trial {trial.number}: seed 1 and seed 2 of 2 .*kept/other/chat"):
        report_row("x", trial, [run, {**other, "seed": 1}], 1, False, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["another result", "no result"])
def test_records_of_another_attempt_on_this_machine_do_not_count(change: str, tmp_path: Path) -> None:
    """Its trial was taken over by another machine, whose result the study has: the figures are of that one."""
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]})
    run = store.trials()[0].runs[0]
    assert has_records([run], tmp_path)
    folder, result = record_files(run, tmp_path)[1].parent, result_of(run)
    with_other_records(tmp_path, run, lambda r: replace(r, correct=1) if r.suite == "new" else r)
    if change == "no result":
        (folder / RESULT).unlink()
    else:
        write_result(folder, replace(result, scorecard={**result.scorecard, "gain": Estimate(0.9)}))
    assert not has_records([run], tmp_path)
    (row,) = choose(store.config.model_copy(update={"report": ReportConfig()}), store.trials()[:1], tmp_path)
    assert trajectories(row, tmp_path) == []
    shares = replace(row, trial=replace(row.trial, picks={**row.trial.picks, "data.replay": 0.1}))
    study = store.config.model_copy(update={"report": ReportConfig(law="data.replay")})
    assert law_table(study, [shares], tmp_path).empty
    write_study_report(store, tmp_path, tmp_path / "report")
    line = next(csv.DictReader((tmp_path / "report" / "table.csv").open()))
    chosen = next(trial for trial in store.trials() if trial.number == int(line["trial"]))
    assert float(line["gain"]) == pytest.approx(result_of(chosen.runs[0]).scorecard["gain"].value)
    assert line["unused_items"] == "False"


@pytest.mark.slow
@pytest.mark.parametrize("of", ["base", "arm"])
@pytest.mark.parametrize("damage", ["one digit", "cut", "empty", "missing"])
def test_a_report_of_damaged_records_is_refused_by_name(damage: str, of: str, tmp_path: Path) -> None:
    """It had another, weaker test, or other figures, without a word; or one trial ended it with a traceback."""
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]})
    file = record_files(store.trials()[0].runs[0], tmp_path)[of == "arm"]
    text = file.read_text()
    file.write_text({"one digit": text.replace('"correct": 1', '"correct": 0', 1), "cut": text[:999]}.get(damage, ""))
    if damage == "missing":
        file.unlink()
    with pytest.raises(DamagedError, match=rf"{of}\S*/{file.name} is .*result\.json was made from: bring it back, "):
        write_study_report(store, tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()

"""What a study's report finds: planted truths, held-out choices, ranks against the paper, files that stand alone."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from experiments.common.commands import command
from experiments.common.files import write_json
from experiments.posthoc.run import result_folder
from experiments.records import Estimate, Record, read_records
from experiments.reporting.text import label, with_interval
from experiments.scorecard import scorecard
from experiments.studies.config import Objective
from experiments.studies.laws.mixture import fit
from experiments.studies.laws.report import law_sentence, law_table, mixture_laws
from experiments.studies.posthoc import posthoc_rows
from experiments.studies.queue import Store
from experiments.studies.report.paper import agreement, at_each, compared, paper_table, spearman
from experiments.studies.report.plots import trajectory_figure
from experiments.studies.report.readings import matched_gain, pareto_volume
from experiments.studies.report.write import write_study_report
from experiments.studies.selection import ReportRow, choose, even, has_name, record_files, report_row
from experiments.studies.trial import result_of
from tests.helpers.studies import TABLE5, synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
SOME = {name: TABLE5[name] for name in ("full", "partial", "lerp8", "lerp8-mse", "plerp8")}
MERGED = [{"arm": "lerp8-mse", "op": "merge", "name": "lerp8-mse-merged"}]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A finished study of five arms, and its root."""
    root = tmp_path_factory.mktemp("some")
    return synthetic_store(root, SOME, question="Does <the> order hold?", posthoc=MERGED), root


def odd(path: Path) -> list[Record]:
    return [record for record in read_records(path) if not even(record)]


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


def test_without_records_the_choice_is_said_to_rest_on_the_same_items(some: tuple[Store, Path]) -> None:
    store, root = some
    assert not any(arm.halves or arm.records for arm in choose(store.config, store.trials(), root / "elsewhere"))


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


def test_an_operation_after_training_is_a_row_of_its_own(some: tuple[Store, Path], tmp_path: Path) -> None:
    """The merged model here is the base: it gains nothing and forgets nothing, on the half that is reported."""
    store, root = some
    arms = choose(store.config, store.trials(), root)
    assert posthoc_rows(store.config, arms, root) == []
    chosen = next(arm for arm in arms if arm.name == "lerp8-mse")
    here = tmp_path / "root"
    shutil.copytree(root / "runs", here / "runs")
    [run] = chosen.runs
    result = replace(result_of(run), operation="merge")
    folder = result_folder(here / run["folder"], result)
    write_json(folder / "result.json", result.to_dict())
    shutil.copy(here / run["folder"] / "base" / "items.jsonl", folder / f"items-{result.steps}.jsonl")
    [row] = posthoc_rows(store.config, arms, here)
    assert (row.name, row.halves, row.trial.number) == ("lerp8-mse-merged", True, chosen.trial.number)
    assert (row.result.scorecard["gain"].value, row.result.scorecard["retention"].value) == (0, 1)
    base = odd(here / run["folder"] / "base" / "items.jsonl")
    right = [r.correct for r in base if r.suite == "kept" and r.correct is not None]
    assert row.result.scorecard["kept_accuracy"].value == pytest.approx(sum(right) / len(right))
    assert "merged" not in matched_gain([*arms, row], here)  # two points are no trajectory
    assert "lerp8-mse-merged" in compared([*arms, row]).index


def test_report_of_an_ablation(some: tuple[Store, Path], tmp_path: Path) -> None:
    store, root = some
    page = write_study_report(store, root, tmp_path / "report").read_text()
    assert "Does &lt;the&gt; order hold?" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.html", "report.md", "table.csv", "forgetting.png", "trajectories.png", "ranks.png"} <= names
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Rank agreement with the paper in kept accuracy, over 5 arms: Spearman " in text
    assert "lerp8-mse against full" in text
    assert "trial 1 (arm=full, rate=2): loss became nan at step 7" in text
    assert command("report", "toy") in text
    assert "lerp8-mse-merged is not made yet" in text
    rows = list(csv.DictReader((tmp_path / "report" / "table.csv").open()))
    assert [row["arm"] for row in rows] == list(SOME)
    assert all(float(row["retention_low"]) <= float(row["retention"]) <= float(row["retention_high"]) for row in rows)


def test_all_arms_at_one_rate_against_the_paper(some: tuple[Store, Path]) -> None:
    """Against scipy, from the trials' own figures of all items."""
    store, _ = some
    said = at_each(store.config, store.trials())
    assert len(said) == 2  # rate 2 has lost an arm
    for rate, text in zip((1, 3), said, strict=True):
        ours = {
            str(t.picks["arm"]): result_of(t.runs[0]).scorecard["kept_accuracy"].value
            for t in store.trials()
            if t.runs and t.picks["rate"] == rate
        }
        known = spearmanr(list(ours.values()), paper_table().loc[list(ours), "kept"]).statistic
        assert text.startswith(f"With all {len(ours)} arms at rate={rate}: Spearman in kept accuracy")
        assert with_interval(Estimate(known)).split(" ")[0] in text


def test_papers_columns_and_rank_agreement(some: tuple[Store, Path]) -> None:
    paper = paper_table()
    assert paper.loc["full", "average"] == pytest.approx(34.275)  # 34.3 in its Table 5
    assert paper.loc["lerp8-mse", "average"] == pytest.approx(56.525)
    store, root = some
    table = compared(choose(store.config, store.trials(), root))
    for found in agreement(table):
        known = spearmanr(table[f"our_{found.column}"], table[f"paper_{found.column}"]).statistic
        assert found.rho.value == pytest.approx(known)
        assert found.rho.low is not None
        assert found.rho.low <= known
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 4, 9)).astype(float)
    assert spearman(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_retention_at_a_common_gain(some: tuple[Store, Path]) -> None:
    """Against straight lines between the figures of the reported half."""
    store, root = some
    arms = choose(store.config, store.trials(), root)
    paths = {}
    for arm in arms:
        base, _ = record_files(arm.runs[0], root)
        cards = [scorecard(odd(base), odd(record_files(arm.runs[0], root, step)[1]), 100) for step in (20, 40)]
        paths[arm.name] = [(0.0, 1.0), *((card["gain"].value, card["retention"].value) for card in cards)]
    target = min(max(gain for gain, _ in path) for path in paths.values())
    said = matched_gain(arms, root)
    assert said.startswith(f"Retention at a common gain of +{target:.2f}".replace("+0", "+"))
    for name, path in paths.items():
        gains, kept = np.array(path).T
        retention = np.interp(target, gains, kept)  # gains rise here
        assert re.search(rf"{name} {retention:.2f} \[".replace(" 0.", r" \."), said), (name, retention, said)
    assert said.index("lerp8-mse ") < said.index("full ")
    assert matched_gain(arms[:1], root) == ""
    idle = replace(arms[0], name="idle", runs=[nothing_learned(arms[0], root)])
    said = matched_gain([*arms, idle], root)
    assert f"common gain of +{target:.2f}".replace("+0", "+") in said
    assert said.endswith("Without a gain outside its interval, and so left out: idle.")
    assert matched_gain(arms, root / "elsewhere") == ""


def test_area_that_the_trials_dominate(some: tuple[Store, Path]) -> None:
    store, _ = some
    objectives = (objective("gain"), objective("kl", "minimize"))
    points = [(3.0, 3.0), (1.0, 1.0), (2.0, 2.0), (1.0, 3.0)]  # worst: 1 and 3
    trials = [replace(store.trials()[0], values=list(point)) for point in points]
    known = store.config
    store.config = known.model_copy(update={"objectives": objectives})
    said = pareto_volume(store, trials)
    store.config = known
    assert "is 1, measured" in said  # only (2, 2) is better than the worst in both
    assert "(gain 1, kl 3)" in said
    assert pareto_volume(store, trials) == ""  # one objective


def test_law_of_each_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss over the base's: (0.8 - kept accuracy) R^2 nats, R = 1 - replay; .05 nats are what may be lost."""
    monkeypatch.setattr("tests.helpers.studies.FAILS", None)
    replay = {"kind": "choice", "path": "training.weight_decay", "values": [0.0, 0.05, 0.1, 0.25, 0.5]}
    truth = {name: TABLE5[name] for name in ("full", "stack", "lerp8-mse")}
    arms = {"kind": "arms", "arms": {name: {} for name in truth}}
    store = synthetic_store(tmp_path, truth, {"arm": arms, "replay": replay}, report={"law": "replay"})
    chosen = choose(store.config, store.trials(), tmp_path)
    table = law_table(store.config, chosen, tmp_path)
    full = table[(table.arm == "full") & (table.step == 40)]
    assert list(full.ratio) == pytest.approx([1, 0.95, 0.9, 0.75, 0.5])
    assert list(full.loss_kept - full.base_kept) == pytest.approx([0.4 * r**2 for r in full.ratio])
    assert not table.nats.any()
    sentences, pictures = mixture_laws(store.config, chosen, tmp_path, draws=10)
    assert list(pictures) == list(truth)
    assert sentences[0].startswith("Mixture law of full: no replayed share up to 50% keeps the loss of general text")
    most = 1 - (0.05 / (0.8 - truth["stack"][1])) ** 0.5
    assert f"Mixture law of stack: replaying {most:.0%} or more" in sentences[1]
    assert "even without replay" in sentences[2]
    assert all("in the share of wrong answers (its answers have no likelihood here)" in said for said in sentences)
    assert all("by .000 [.000,.000] nats (general text; " in said for said in sentences)
    assert all("takes 4 evaluations of each run at a constant learning rate, and here is 2." in s for s in sentences)
    assert pictures["full"].axes[0].get_ylabel() == "share of wrong answers"
    few = [arm for arm in chosen if arm.trial.picks["replay"] in (0.0, 0.5)]
    assert mixture_laws(store.config, few, tmp_path)[0][0].startswith("No mixture law of full: a mixture law needs")


def nothing_learned(arm: ReportRow, root: Path) -> dict[str, Any]:
    """The arm's run again, with the base's answers after each step."""
    run = {**arm.runs[0], "folder": "runs/idle"}
    shutil.copytree(root / arm.runs[0]["folder"], root / "runs" / "idle", dirs_exist_ok=True)
    for step in (20, 40):
        base, after = record_files(run, root, step)
        shutil.copy(base, after)
    return run


def objective(figure: str, direction: str = "maximize") -> Objective:
    return Objective.model_validate({"figure": figure, "direction": direction})


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_points_that_follow_no_power_law_are_called_so() -> None:
    ratio = [0.5, 0.75, 0.9, 0.95, 0.99, 1.0]
    table = pd.DataFrame({"ratio": ratio, "tokens": 1e4, "loss_new": [1 - 0.3 * r**2 for r in ratio]})
    scattered = fit(table.assign(loss_kept=[4.22, 4.19, 4.02, 4.0, 4.07, 4.47]), 3.74, draws=20)
    assert "The exponent of general text ended at its bound" in law_sentence("full", scattered, nats=True)
    lawful = fit(table.assign(loss_kept=[3.7 + 0.4 * r**3 for r in ratio]), 3.74, draws=20)
    assert "bound" not in law_sentence("full", lawful, nats=True)


def test_the_trajectory_ends_at_the_figures_of_the_table(some: tuple[Store, Path]) -> None:
    """Both are of the items that did not choose: the picture must not be flattered by the choice."""
    store, root = some
    for arm in choose(store.config, store.trials(), root):
        assert [point["step"] for point in arm.result.trajectory] == [0, 20, 40]
        assert arm.result.trajectory[-1]["gain"] == arm.result.scorecard["gain"]
        base, middle = record_files(arm.runs[0], root, 20)
        expected = scorecard(odd(base), odd(middle), 100)["retention"].value
        assert arm.result.trajectory[1]["retention"].value == pytest.approx(expected)
        assert arm.result.trajectory[0]["gain"].value == 0


def test_a_variant_that_breaks_a_constraint_is_not_chosen(some: tuple[Store, Path]) -> None:
    store, root = some
    trials = [replace(t, feasible=t.picks["rate"] == 3.0) for t in store.trials()]
    arms = choose(store.config, trials, root)
    assert {arm.trial.picks["rate"] for arm in arms} == {3.0}


def test_an_objective_that_a_half_lacks_is_taken_of_all_items(some: tuple[Store, Path]) -> None:
    store, root = some
    trials = store.trials()
    for trial in trials:
        if trial.runs:
            trial.runs[0]["result"]["scorecard"]["stream_op"] = {"value": float(trial.number)}
    changed = store.config.model_copy(update={"objectives": (objective("stream_op"),)})
    arms = choose(changed, trials, root)
    assert all(arm.trial.number == max(t.number for t in trials if t.picks["arm"] == arm.name) for arm in arms)
    assert not any(arm.halves for arm in arms)
    assert all(arm.result.scorecard["stream_op"].value == arm.trial.number for arm in arms)


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


def test_the_gain_of_texts_is_drawn(some: tuple[Store, Path]) -> None:
    store, root = some
    arm = choose(store.config, store.trials(), root)[0]
    points = [{"step": p["step"], "new_nll_drop": Estimate(0.1 * p["step"])} for p in arm.result.trajectory]
    figure = trajectory_figure([replace(arm, result=replace(arm.result, trajectory=points))], "new_nll_drop")
    assert figure.axes[0].get_title(loc="left").startswith("gain, nats: negative log-likelihood of the new texts")
    assert list(figure.axes[0].lines[-1].get_ydata()) == pytest.approx([0, 2, 4])
    assert len(figure.legends) == 1

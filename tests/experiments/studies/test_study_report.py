"""What a study's report finds: planted truths, held-out choices, ranks against the paper, files that stand alone."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.records import read_records
from experiments.scorecard import scorecard
from experiments.studies.extras import hypervolume, law_table, matched_gain
from experiments.studies.paper import agreement, compared, paper_table, spearman
from experiments.studies.report import write_study_report
from experiments.studies.selection import choose, even
from tests.experiments.studies.synthetic import TABLE5, synthetic_store

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
FEW = {name: TABLE5[name] for name in ("full", "partial", "lerp8-mse")}
SOME = {name: TABLE5[name] for name in ("full", "partial", "lerp8", "lerp8-mse", "plerp8")}


def test_the_best_rate_is_chosen_on_items_that_are_not_reported(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, FEW, objectives=[{"figure": "gain", "direction": "maximize"}])
    arms = choose(store.config, store.trials(), tmp_path)
    assert [(arm.name, arm.candidates, arm.halves) for arm in arms] == [
        ("full", 2, True),  # one of its three failed
        ("partial", 3, True),
        ("lerp8-mse", 3, True),
    ]
    for arm in arms:
        cards: dict[int, dict[bool, float]] = {}
        for trial in store.trials():
            if trial.picks["arm"] == arm.name and trial.state == "complete":
                run = tmp_path / "runs" / f"r{trial.number}"
                files = [run / "base" / "items.jsonl", next((run / "arms").glob("*/items-40.jsonl"))]
                cards[trial.number] = {
                    half: scorecard(*([r for r in read_records(f) if even(r) == half] for f in files), 100)[
                        "gain"
                    ].value
                    for half in (True, False)
                }
        assert arm.trial.number == max(cards, key=lambda number: cards[number][True])
        assert arm.result.scorecard["gain"].value == pytest.approx(cards[arm.trial.number][False])


def test_without_records_the_choice_is_said_to_rest_on_the_same_items(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, FEW)
    assert not any(arm.halves for arm in choose(store.config, store.trials(), tmp_path / "elsewhere"))


@pytest.mark.slow
def test_report_of_an_ablation(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, SOME, question="Does <the> order hold?")
    page = write_study_report(store, tmp_path, tmp_path / "report").read_text()
    assert "Does &lt;the&gt; order hold?" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.html", "report.md", "table.csv", "forgetting.png", "trajectories.png", "ranks.png"} <= names
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Rank agreement with the paper in kept accuracy, over 5 arms: Spearman " in text
    assert "lerp8-mse against full" in text
    assert "trial 1 (arm=full, rate=2): loss became nan at step 7" in text
    assert "python -m experiments.cli report toy" in text
    rows = list(csv.DictReader((tmp_path / "report" / "table.csv").open()))
    assert [row["arm"] for row in rows] == list(SOME)
    assert all(float(row["retention_low"]) <= float(row["retention"]) <= float(row["retention_high"]) for row in rows)


def test_papers_columns_and_rank_agreement(tmp_path: Path) -> None:
    paper = paper_table()
    assert paper.loc["full", "average"] == pytest.approx(34.275)  # 34.3 in its Table 5
    assert paper.loc["lerp8-mse", "average"] == pytest.approx(56.525)
    store = synthetic_store(tmp_path, SOME)
    table = compared(choose(store.config, store.trials(), tmp_path))
    for found in agreement(table):
        known = spearmanr(table[f"our_{found.column}"], table[f"paper_{found.column}"]).statistic
        assert found.rho.value == pytest.approx(known)
        assert found.rho.low is not None
        assert found.rho.low <= known
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 4, 9)).astype(float)
    assert spearman(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_hypervolume_and_matched_gain(tmp_path: Path) -> None:
    points = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    assert hypervolume(points, np.zeros(2)) == 6.0
    assert hypervolume(points, np.ones(2)) == 1.0
    store = synthetic_store(tmp_path, FEW)
    said, figure = matched_gain(choose(store.config, store.trials(), tmp_path), tmp_path)
    assert figure is None
    assert said.startswith("Retention at a common gain of +.")
    assert said.index("lerp8-mse") < said.index("full")


def test_law_table_has_the_losses_of_the_records(tmp_path: Path) -> None:
    share = {"kind": "choice", "path": "training.weight_decay", "values": [0.0, 0.5]}
    arms = {"kind": "arms", "arms": {name: {} for name in FEW}}
    store = synthetic_store(tmp_path, FEW, {"arm": arms, "share": share}, report={"law": "share"})
    table = law_table(store, store.trials(), tmp_path)
    assert sorted(table.ratio) == [0.5, 0.5, 1.0, 1.0, 1.0]
    full = table[table.arm == "full"].iloc[0]
    assert full.loss_kept == pytest.approx(np.mean([3.8 - 0.4 + 0.1 * i for i in range(8)]))
    assert set(table.tokens) == {1e5}

"""A study's report as files that stand alone, with the commands that made it."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

from experiments.common.commands import command
from experiments.studies.queue import Store
from experiments.studies.report.write import _at_once, write_study_report
from tests.helpers.planted_study import SOME, TABLE5, synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


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


def test_the_command_names_as_many_workers_as_ran_at_once(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]})
    assert _at_once(store) == 1
    start = store.study.trials[0].datetime_start
    assert start is not None
    beside = optuna.trial.create_trial(value=1.0)
    beside.datetime_start, beside.datetime_complete = start, store.study.trials[-1].datetime_complete
    store.study.add_trial(beside)
    assert _at_once(store) == 2


@pytest.mark.parametrize("rate", [{"kind": "choice", "values": [1.0, 2.0, 3.0]}, {"kind": "int", "low": 1, "high": 3}])
def test_one_dimension_is_enough_for_a_report(rate: dict[str, Any], tmp_path: Path) -> None:
    search = {"rate": {"path": "arms.0.learning_rates.0", **rate}}
    store = synthetic_store(tmp_path, {"arm": TABLE5["full"]}, search, report={})
    page = write_study_report(store, tmp_path, tmp_path / "report").read_text()
    assert "Trials by dimension: gain" in page
    assert len(list(csv.DictReader((tmp_path / "report" / "table.csv").open()))) == 2  # one of three failed


def test_a_trial_whose_records_are_gone_is_named(tmp_path: Path) -> None:
    """All arms were compared by another test, and the page did not say why. Without two halves nothing else said it."""
    store = synthetic_store(tmp_path, {"arm": TABLE5["full"], "lerp": TABLE5["lerp8-mse"]}, report={})
    pages = [write_study_report(store, tmp_path, tmp_path / name).with_suffix(".md") for name in ("whole", "gone")]
    assert "Item records" not in pages[0].read_text()
    number = store.trials()[-1].number
    shutil.rmtree(tmp_path / store.trials()[-1].runs[0]["folder"])
    text = write_study_report(store, tmp_path, tmp_path / "gone").with_suffix(".md").read_text()
    assert f"Item records of trial {number} are not on this machine: bring the folders of its runs back" in text
    assert "Until then arms that need them are compared by their intervals" in text

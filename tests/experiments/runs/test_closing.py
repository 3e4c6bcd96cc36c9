"""The end of a run: its report and pictures are logged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.records import read_records
from experiments.runs.baseline import without_room
from experiments.runs.run import run_experiment
from experiments.tracking.tracker import Tracker
from tests.helpers.small_run import small_config

pytestmark = pytest.mark.slow


def test_pictures_of_the_report_are_files_in_mlflow(
    store: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [("Hidden states by layer", Figure())]
    monkeypatch.setattr("experiments.reporting.run_details.alignment_pictures", lambda last: drawn)
    outcome = run_experiment(small_config(base), store)
    tracker = Tracker(store, "small")
    [run] = tracker.client.search_runs([tracker.experiment_id], "attributes.run_name = 'small'")
    files = {file.path for file in tracker.client.list_artifacts(run.info.run_id)}
    assert {"forgetting.png", "hidden-states-by-layer.png", "comparison.json", "comparison.html"} <= files
    table = json.loads((outcome.folder / "comparison.json").read_text())
    assert {row[0] for row in table["data"]} == {"full 1e-3", "control 0.01"}
    turned = json.loads((outcome.folder / "answers.json").read_text())
    assert {tuple(row[:2]) for row in turned["data"]} & {("control 0.01", "lost"), ("control 0.01", "won")}
    tables = [{"path": name, "type": "table"} for name in ("comparison.json", "answers.json")]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == tables
    assert "Trained and measured in fp32 (as configured)." in outcome.report.read_text()
    (of_base,) = without_room(read_records(outcome.folder / "base" / "items.jsonl"))
    assert of_base in (outcome.folder / "report.md").read_text()
    links = re.findall(r'<a href="([^"]+)">(?:full-0.001|control-0.01)</a>', outcome.report.read_text())
    assert len(set(links)) == 2
    assert all("workflowType=machine_learning" in link for link in links)
    (outcome.folder / "hidden-states-by-layer.png").unlink()

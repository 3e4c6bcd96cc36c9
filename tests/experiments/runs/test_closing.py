"""The end of a run: its report and pictures are logged."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

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
    assert {"forgetting.png", "hidden-states-by-layer.png"} <= files
    (outcome.folder / "hidden-states-by-layer.png").unlink()

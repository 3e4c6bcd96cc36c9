"""Post-hoc results are runs in MLflow: below the experiment's, once, whatever becomes of process or store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.common.commands import command
from experiments.posthoc.run import posthoc
from experiments.reporting.text import figure_text
from experiments.runs.prepared import Prepared
from experiments.runs.run import run_experiment
from experiments.tracking.machine import process_tags
from experiments.tracking.run import Run
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker
from tests.helpers.small_run import small_config, tiny_base

pytestmark = pytest.mark.slow  # an arm is trained for it

ARMS: list[dict[str, Any]] = [
    {"name": "control", "method": "control", "learning_rates": [1e-2], "control": {"layers": 2}}
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in MLflow below another experiment's name than its own, as a study's trials are."""
    base = tiny_base(tmp_path_factory.mktemp("base"))
    config = small_config(base, arms=ARMS, training={"steps": 2, "batch_size": 4, "warmup_steps": 0})
    root = tmp_path_factory.mktemp("root") / "mlruns"
    return run_experiment(config, root, say=lambda text: None, experiment="shared").folder


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def tracked(run: Path) -> tuple[Tracker, dict[str, Any]]:
    """The store of a run and its MLflow runs by name."""
    tracker = Tracker(run.parent.parent, "shared")
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len({each.info.run_name for each in runs}) == len(runs), "a run was made twice"
    return tracker, {each.info.run_name: each for each in runs}


def test_each_result_is_a_run_below_the_experiments_and_names_its_arm(run: Path) -> None:
    [merged] = posthoc(run, "control", 1e-2, "merge", say=lambda text: None)
    [half] = posthoc(run, "control", 1e-2, "wise", [0.5], say=lambda text: None)
    assert posthoc(run, "control", 1e-2, "wise", [0.5]) == [half]
    tracker, runs = tracked(run)
    assert set(runs) == {"small", "control 0.01", "control 0.01 merge", "control 0.01 wise 0.5"}
    for result, options in ((merged, {"operation": "merge"}), (half, {"operation": "wise", "alpha": "0.5"})):
        found = runs[result.label]
        assert found.info.status == "FINISHED"
        source = {"source_arm": "control-0.01", "source_run": runs["control 0.01"].info.run_id}
        above = {"kind": "posthoc", "mlflow.parentRunId": runs["small"].info.run_id}
        assert found.data.tags.items() >= {**options, **source, **above}.items()
        assert found.data.params.items() >= {"arm": "control", "learning_rate": "0.01", **options}.items()
        assert found.data.metrics["kl"] == result.scorecard["kl"].value
        assert found.data.metrics["cost/added_parameters"] == 0
        assert found.data.tags["mlflow.note.content"].startswith(f"{result.operation}: nothing was trained")
        assert found.data.tags["interval/retention"] == figure_text(result.scorecard, "retention")
        files = {
            f.path for at in ("records", "scorecard") for f in tracker.client.list_artifacts(found.info.run_id, at)
        }
        assert files == {"records/items-2.jsonl", "scorecard/result.json"}
    assert "alpha" not in runs[merged.label].data.tags
    assert runs[merged.label].data.metrics["cost/merge_gap_kl"] == merged.cost["merge_gap_kl"]


def test_one_that_broke_off_is_continued(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Prepared, "measure", full)
        with pytest.raises(OSError, match="no space left"):
            posthoc(run, "control", 1e-2, "wise", [0.75], say=lambda text: None)
    before = tracked(run)[1]["control 0.01 wise 0.75"]
    assert (before.info.status, before.data.tags["error"]) == ("FAILED", "no space left on device")
    posthoc(run, "control", 1e-2, "wise", [0.75], say=lambda text: None)
    after = tracked(run)[1]["control 0.01 wise 0.75"]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert "error" not in after.data.tags


@pytest.mark.parametrize(("alpha", "reaped"), [(0.1, False), (0.9, True)])
def test_one_killed_after_its_result_finishes_at_the_next_start(
    run: Path, monkeypatch: pytest.MonkeyPatch, alpha: float, reaped: bool
) -> None:
    measure = Prepared.measure

    def killed(*args: Any) -> None:
        measure(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Prepared, "measure", killed)
        dying.setattr(Run, "close", lambda self, status: None)
        dying.setattr("experiments.tracking.tracker.process_tags", lambda: process_tags() | {"boot_id": "another"})
        with pytest.raises(KeyboardInterrupt):
            posthoc(run, "control", 1e-2, "wise", [alpha], say=lambda text: None)
    name = f"control 0.01 wise {alpha}"
    assert (run / "posthoc" / name.replace(" ", "-") / "result.json").is_file()
    if reaped:
        tracked(run)[0].reap()
    before = tracked(run)[1][name]
    assert before.info.status == ("KILLED" if reaped else "RUNNING")
    assert "kl" not in before.data.metrics
    monkeypatch.setattr("experiments.posthoc.run.open_run", lambda *_: pytest.fail("nothing is left to measure"))
    [result] = posthoc(run, "control", 1e-2, "wise", [alpha])
    tracker, runs = tracked(run)
    after = runs[name]
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert after.data.metrics["kl"] == result.scorecard["kl"].value
    assert "error" not in after.data.tags
    assert after.data.tags["mlflow.parentRunId"] == runs["small"].info.run_id
    assert [f.path for f in tracker.client.list_artifacts(after.info.run_id, "scorecard")] == ["scorecard/result.json"]


def test_a_store_that_is_away_gets_it_by_sync(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
        with pytest.warns(UserWarning, match=f"does not answer|later: {re.escape(command('sync'))}"):
            [result] = posthoc(run, "control", 1e-2, "wise", [0.25], say=lambda text: None)
    name = "control 0.01 wise 0.25"
    saved = json.loads((run / "posthoc" / name.replace(" ", "-") / "result.json").read_text())
    assert saved["scorecard"]["kl"]["value"] == result.scorecard["kl"].value
    assert name not in tracked(run)[1]
    for _ in range(2):
        sync([run], run.parent.parent)
        found = tracked(run)[1]
        assert found[name].data.tags["mlflow.parentRunId"] == found["small"].info.run_id
        assert found[name].data.metrics["kl"] == result.scorecard["kl"].value
        for note in (run / "posthoc").rglob("*.delivered.json"):
            note.unlink()

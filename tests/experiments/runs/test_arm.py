"""One arm: how it ends, what it keeps, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main as cli
from experiments.common.hashing import json_digest
from experiments.runs.arm import CONSTANT, ArmRun, StopArm
from experiments.runs.run import run_experiment, run_folder
from experiments.tracking.tracker import Tracker
from tests.helpers.small_run import small_config, small_values
from tests.helpers.tracking_store import statuses

pytestmark = pytest.mark.slow


def test_an_arm_stopped_between_its_result_and_its_end_is_finished_by_the_next_start(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(base, arms=small_values(base)["arms"][:1])

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    def closed(*args: Any) -> None:
        close(*args)
        raise KeyboardInterrupt

    close = ArmRun._close
    for place, then in (("experiments.runs.arm.write_result", stopped), ("experiments.runs.arm.ArmRun._close", closed)):
        with monkeypatch.context() as patched:
            patched.setattr(place, then)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(config, tmp_path)
    assert statuses(tmp_path) == {"small": "KILLED", "full 0.001": "KILLED"}
    monkeypatch.setattr("experiments.runs.arm_training.train_arm", None)  # would fail if it were called
    outcome = run_experiment(config, tmp_path)
    assert not outcome.failed
    assert statuses(tmp_path) == {"small": "FINISHED", "full 0.001": "FINISHED"}
    tracker = Tracker(tmp_path, "small")
    [arm] = tracker.client.search_runs([tracker.experiment_id], "attributes.run_name = 'full 0.001'")
    assert [f.path for f in tracker.client.list_artifacts(arm.info.run_id, "scorecard")] == ["scorecard/result.json"]
    assert not (outcome.folder / "arms" / "full-0.001" / "checkpoints").exists()
    for name, cost in outcome.results[0].cost.items():
        points = tracker.client.get_metric_history(arm.info.run_id, f"cost/{name}")
        assert [point.value for point in points] == [cost] * (name not in CONSTANT), name


def test_a_pruned_arm_keeps_no_checkpoint(base: str, tmp_path: Path) -> None:
    def observe(label: str, step: int, figures: Any) -> None:
        if step == 4:
            raise StopArm("not worth going on")

    config = small_config(base, arms=small_values(base)["arms"][:1])
    outcome = run_experiment(config, tmp_path, observe=observe)
    [result] = outcome.results
    assert (result.status, result.steps) == ("pruned", 4)
    tracker = Tracker(tmp_path, "small")
    [arm] = tracker.client.search_runs([tracker.experiment_id], "attributes.run_name = 'full 0.001'")
    assert (arm.info.status, arm.data.tags["pruned"]) == ("FINISHED", "not worth going on")
    assert not (outcome.folder / "arms" / "full-0.001" / "checkpoints").exists()


def test_a_nan_stops_its_arm_alone(base: str, tmp_path: Path) -> None:
    arms = small_values(base)["arms"]
    arms[0]["learning_rates"] = [1000.0, 1e-3]
    values = small_values(base, arms=arms, training={"steps": 6, "batch_size": 4, "warmup_steps": 0})
    values["evaluation"]["every"] = 6  # the loss is to find it, not the first evaluation
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    code = cli.main(["run", str(tmp_path / "config.yaml"), "--root", str(tmp_path / "mlruns")])
    assert code == 1
    results = {
        p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "mlruns").glob("runs/*/arms/*/result.json")
    }
    assert results["full-1000"]["status"] == "failed"
    assert "loss became" in results["full-1000"]["reason"]
    assert "lower the learning rate" in results["full-1000"]["reason"]
    assert {r["status"] for name, r in results.items() if name != "full-1000"} == {"finished"}
    assert statuses(tmp_path / "mlruns")["full 1000"] == "FAILED"
    report = next((tmp_path / "mlruns").glob("runs/*/report.html")).read_text()
    assert "loss became" in report


def test_an_error_after_training_is_the_arms_own_and_costs_no_training(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, drawn, said = small_config(base), ArmRun.drawn, []

    def broken(self: ArmRun) -> Any:
        if self.arm.name == "full":
            raise ValueError("twice among the records")
        return drawn(self)

    with monkeypatch.context() as patched:
        patched.setattr(ArmRun, "drawn", broken)
        first, second = run_experiment(config, tmp_path, say=said.append).results
    assert (first.status, first.reason) == ("failed", "ValueError: twice among the records")
    assert second.status == "finished"
    folder = run_folder(config, tmp_path) / "arms" / "full-0.001"
    assert list((folder / "checkpoints").glob("checkpoint-*"))
    run_experiment(config, tmp_path, say=said.append)  # reads what there is, and says what can be done
    assert said[-1] == f"full-0.001 failed; to go on from its last checkpoint, delete {folder / 'result.json'}"
    (folder / "result.json").unlink()
    again = run_experiment(config, tmp_path, say=said.append)
    assert [result.status for result in again.results] == ["finished"] * 2
    assert "full 0.001: continues from checkpoint-2" in said
    assert not (folder / "checkpoints").exists()


def test_what_was_drawn_is_counted_again_if_its_file_was_changed(base: str, tmp_path: Path) -> None:
    config = small_config(base, arms=small_values(base)["arms"][:1])
    file = run_experiment(config, tmp_path, say=lambda text: None).folder / "arms" / "full-0.001" / "data.json"
    whole = json.loads(file.read_text())
    assert whole.pop("digest") == json_digest(whole)
    tokens = whole["drawn"][0]["tokens"]
    text = file.read_text()
    file.write_text(text.replace(str(tokens), str(tokens + 1)))
    run_experiment(config, tmp_path, say=lambda text: None)
    assert file.read_text() == text

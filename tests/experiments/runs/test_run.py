"""An experiment from config to report: what it leaves, what stops it, and how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file

from experiments.cli import main as cli
from experiments.common.errors import ConfigError, RunError
from experiments.config import ExperimentConfig
from experiments.runs.arm import ArmRun, StopArm
from experiments.runs.run import run_experiment, run_folder
from experiments.scorecard import scorecard
from experiments.tracking.tracker import Tracker
from tests.helpers.small import small_config, small_values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    """One whole run; the tests below copy what they change."""
    root = tmp_path_factory.mktemp("whole") / "mlruns"
    run_experiment(small_config(base), root)
    return root


def statuses(root: Path) -> dict[str, str]:
    tracker = Tracker(root, "small")
    runs = tracker.client.search_runs([tracker.experiment_id])
    return {run.info.run_name: run.info.status for run in runs}


def test_a_run_leaves_records_models_report_and_mlflow_runs(store: Path, base: str) -> None:
    folder = run_folder(small_config(base), store)
    for name in ("config.yaml", "report.html", "report.md", "table.csv", "forgetting.png", "base/items.jsonl"):
        assert (folder / name).stat().st_size > 0, name
    for arm in ("full-0.001", "control-0.01"):
        result = json.loads((folder / "arms" / arm / "result.json").read_text())
        assert result["status"] == "finished"
        assert [point["step"] for point in result["trajectory"]] == [0, 2, 4]
        assert result["cost"]["tokens"] > 0
        assert (folder / "arms" / arm / "trained" / "model.safetensors").is_file()
        assert not (folder / "arms" / arm / "checkpoints").exists()
    assert statuses(store) == {"small": "FINISHED", "full 0.001": "FINISHED", "control 0.01": "FINISHED"}
    assert "<img" in (folder / "report.html").read_text() or "<svg" in (folder / "report.html").read_text()


def test_per_step_and_per_evaluation_figures_are_in_mlflow(store: Path) -> None:
    tracker = Tracker(store, "small")
    runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
    run = runs["control 0.01"]
    assert run.data.params["learning_rate"] == "0.01"
    for metric in ("loss", "lm_loss", "divergence", "grad_norm", "learning_rate"):
        steps = [m.step for m in tracker.client.get_metric_history(run.info.run_id, metric)]
        assert steps == [1, 2, 3, 4], metric
    assert [m.step for m in tracker.client.get_metric_history(run.info.run_id, "retention")] == [2, 4]
    assert run.data.tags["mlflow.parentRunId"] == runs["small"].info.run_id


def test_every_run_has_its_config_data_and_place_in_the_chain(store: Path) -> None:
    tracker = Tracker(store, "small")
    found = tracker.client.search_runs([tracker.experiment_id], "tags.experiment = 'small'")
    runs = {run.info.run_name: run for run in found}
    assert set(runs) == {"small", "full 0.001", "control 0.01"}
    folder = runs["small"].data.tags["run_folder"]
    for run in runs.values():
        assert run.data.tags["run_folder"] == folder
        assert run.data.params["training.steps"] == "4"
        assert run.data.params["seed"] == "0"
        assert [source.dataset.name for source in run.inputs.dataset_inputs] == ["chain_sum"]
        assert all(source.dataset.digest for source in run.inputs.dataset_inputs)
        assert "config.yaml" in [file.path for file in tracker.client.list_artifacts(run.info.run_id)]


def test_a_run_that_fails_early_has_its_config(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no data today")

    monkeypatch.setattr("experiments.runs.prepared.ExperimentData", broken)
    with pytest.raises(RuntimeError, match="no data today"):
        run_experiment(small_config(base), tmp_path)
    tracker = Tracker(tmp_path, "small")
    [run] = tracker.client.search_runs([tracker.experiment_id])
    assert run.info.status == "FAILED"
    assert {"config.yaml", "traceback.txt"} <= {file.path for file in tracker.client.list_artifacts(run.info.run_id)}


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


def test_an_arm_stopped_between_its_result_and_its_end_is_finished_by_the_next_start(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(base, arms=small_values(base)["arms"][:1])

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ArmRun, "_close", stopped)
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


def test_a_pruned_arm_keeps_no_checkpoint(base: str, tmp_path: Path) -> None:
    def observe(label: str, step: int, figures: Any) -> None:
        if step == 4:
            raise StopArm("not worth going on")

    config = small_config(base, arms=small_values(base)["arms"][:1])
    outcome = run_experiment(config, tmp_path, observe=observe)
    [result] = outcome.results
    assert (result.status, result.steps) == ("pruned", 4)
    assert not (outcome.folder / "arms" / "full-0.001" / "checkpoints").exists()


def test_a_second_call_trains_nothing(store: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.runs.arm_training.train_arm", None)  # would fail if it were called
    said: list[str] = []
    outcome = run_experiment(small_config(base), store, say=said.append)
    assert len(outcome.results) == 2
    assert not outcome.failed
    assert any("finished already" in line for line in said)


def test_another_run_with_the_same_base_does_not_measure_it(store: Path, base: str) -> None:
    """As the trials of a study: another name, the same base, seed and evaluation."""
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    training = {"steps": 1, "batch_size": 4, "warmup_steps": 1}
    second = small_config(base, name="second", arms=arms, training=training)
    run_experiment(second, store)
    folders = [run_folder(config, store) for config in (small_config(base), second)]
    measured = [json.loads((folder / "base" / "timing.json").read_text())["measured"] for folder in folders]
    assert measured == [["new", "kept", "drift", "text"], []]
    for file in ("base/items.jsonl", "base/state.json"):
        assert (folders[0] / file).read_text() == (folders[1] / file).read_text()


def test_the_same_config_gives_the_same_bits_and_each_evaluation_is_scored_once(
    store: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def counted(base: Any, after: Any, *rest: Any) -> Any:
        scored.append(len(after))
        return scorecard(base, after, *rest)

    monkeypatch.setattr("experiments.runs.prepared.scorecard", counted)
    again = run_experiment(small_config(base), tmp_path / "mlruns")
    assert len(scored) == 1 + 2 * 2  # the base model, two arms at two steps
    first = run_folder(small_config(base), store)
    for file in ("arms/full-0.001/trained/model.safetensors", "arms/control-0.01/trained/model.safetensors"):
        one, two = load_file(first / file), load_file(again.folder / file)
        assert all(torch.equal(one[name], two[name]) for name in one)
    for file in ("base/items.jsonl", "arms/full-0.001/items-4.jsonl", "arms/control-0.01/items-4.jsonl"):
        assert (first / file).read_text() == (again.folder / file).read_text()


def test_killed_and_continued_equals_uninterrupted(store: Path, base: str, tmp_path: Path) -> None:
    """kill -9 in the middle of the second arm, after its first checkpoint."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values(base)))
    root = tmp_path / "mlruns"
    folder = run_folder(small_config(base), root)
    command = [sys.executable, "-m", "experiments.cli", "run", str(tmp_path / "config.yaml"), "--root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marker = folder / "arms" / "control-0.01" / "checkpoints" / "checkpoint-2" / "complete.json"
    deadline = time.monotonic() + 300
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "arms" / "full-0.001" / "result.json").is_file()
    assert not (folder / "arms" / "control-0.01" / "result.json").is_file()
    assert statuses(root)["control 0.01"] == "RUNNING"
    outcome = run_experiment(small_config(base), root)
    assert not outcome.failed
    assert set(statuses(root).values()) == {"FINISHED"}
    assert len(statuses(root)) == 3
    first = run_folder(small_config(base), store)
    for file in ("arms/control-0.01/items-2.jsonl", "arms/control-0.01/items-4.jsonl"):
        assert (first / file).read_text() == (folder / file).read_text()
    one, two = (load_file(f / "arms/control-0.01/trained/model.safetensors") for f in (first, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    tokens = [json.loads((f / "arms/control-0.01/result.json").read_text())["cost"]["tokens"] for f in (first, folder)]
    assert tokens[0] == tokens[1]


def test_ctrl_c_says_how_to_go_on(base: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values(base)))
    root = tmp_path / "mlruns"
    command = [sys.executable, "-m", "experiments.cli", "run", str(tmp_path / "config.yaml"), "--root", str(root)]
    # a shell that runs jobs in the background makes them ignore SIGINT, and children inherit that
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed)
    marker = run_folder(small_config(base), root) / "arms" / "full-0.001" / "items-2.jsonl"
    while not marker.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    assert set(statuses(root).values()) == {"KILLED"}


def test_a_nan_stops_its_arm_alone(base: str, tmp_path: Path) -> None:
    arms = small_values(base)["arms"]
    arms[0]["learning_rates"] = [1e30, 1e-3]
    values = small_values(base, arms=arms, training={"steps": 6, "batch_size": 4, "warmup_steps": 0})
    values["evaluation"]["every"] = 6  # the loss is to find it, not the first evaluation
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    code = cli.main(["run", str(tmp_path / "config.yaml"), "--root", str(tmp_path / "mlruns")])
    assert code == 1
    results = {
        p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "mlruns").glob("runs/*/arms/*/result.json")
    }
    assert results["full-1e+30"]["status"] == "failed"
    assert "loss became" in results["full-1e+30"]["reason"]
    assert "lower the learning rate" in results["full-1e+30"]["reason"]
    assert {r["status"] for name, r in results.items() if name != "full-1e+30"} == {"finished"}
    assert statuses(tmp_path / "mlruns")["full 1e+30"] == "FAILED"
    report = next((tmp_path / "mlruns").glob("runs/*/report.html")).read_text()
    assert "loss became" in report


def test_a_full_disk_stops_the_job_and_loses_nothing(
    store: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mlruns"
    shutil.copytree(store / "runs", root / "runs")
    folder = run_folder(small_config(base), root)
    shutil.rmtree(folder / "arms" / "control-0.01")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("experiments.training.trainer.Trainer._save", full)
        with pytest.raises(RunError, match="no space left on the disk"):
            run_experiment(small_config(base), root)
    assert (folder / "arms" / "full-0.001" / "result.json").is_file()
    assert (folder / "arms" / "control-0.01" / "items-2.jsonl").is_file()
    assert not (folder / "arms" / "control-0.01" / "result.json").is_file()
    outcome = run_experiment(small_config(base), root)
    assert not outcome.failed


def test_two_processes_on_one_run_are_refused(base: str, tmp_path: Path) -> None:
    from filelock import FileLock

    folder = run_folder(small_config(base), tmp_path)
    folder.parent.mkdir(parents=True)
    with FileLock(f"{folder}.lock"), pytest.raises(RunError, match="another process is running"):
        run_experiment(small_config(base), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainig": {}}, "trainig: unknown key; did you mean 'training'"),
        ({"training": {"stps": 3}}, "training.stps: unknown key; did you mean 'steps'"),
        ({"arms": []}, "at least 1 item"),
        ({"base_model": "no/such-model"}, "base_model 'no/such-model' could not be loaded"),
        ({"base_model": __file__}, "could not be loaded"),
        ({"data": {"new": {"name": "chain_sums"}}}, "did you mean 'chain_sum'"),
        ({"arms": [{"name": "x", "method": "ful", "learning_rates": [1]}]}, "did you mean 'full'"),
        (
            {"arms": [{"name": "x", "method": "control", "learning_rates": [1], "control": {"layers": 9}}]},
            "arm 'x': layers=9: the model has 3 layers, give a count in 1..3",
        ),
        (
            {"arms": [{"name": "x", "method": "control", "learning_rates": [1], "control": {"interpolation": "lrp"}}]},
            "unknown interpolation 'lrp': did you mean 'lerp'",
        ),
    ],
)
def test_wrong_input_is_named_and_nothing_is_made(
    base: str, tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_values(base, **change)))
    code = cli.main(["run", str(tmp_path / "config.yaml"), "--root", str(tmp_path / "mlruns")])
    assert code in (1, 2)
    assert message in capsys.readouterr().err


def test_a_source_that_has_changed_is_found(base: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(40)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))

    def config() -> ExperimentConfig:  # read anew: a source keeps what it has read
        short = {"training": {"steps": 1, "batch_size": 1, "warmup_steps": 0}, "arms": small_values(base)["arms"][:1]}
        return small_config(base, data={"new": {"source": "file", "path": str(file)}}, **short)

    outcome = run_experiment(config(), tmp_path / "mlruns")
    file.write_text("\n".join(json.dumps({**row, "answer": "7"}) for row in rows))
    with pytest.raises(ConfigError, match=r"sums has changed since small-.* began, .* start anew with --fresh"):
        run_experiment(config(), tmp_path / "mlruns")
    assert run_experiment(config(), tmp_path / "mlruns", fresh=True).folder == outcome.folder


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "nothing.yaml")]) == 2
    assert "no config file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert cli.main(["run", str(tmp_path / "broken.yaml")]) == 2
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- 1")
    assert cli.main(["run", str(tmp_path / "list.yaml")]) == 2
    assert "must contain a mapping" in capsys.readouterr().err
    assert cli.main(["run", "quickstart", "--set", "training.steps"]) == 2
    assert "--set takes KEY=VALUE" in capsys.readouterr().err


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


def test_an_arm_that_cannot_be_timed_stops_no_other(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def too_large(arm: Any) -> float:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("experiments.runs.estimate.step_seconds", too_large)
    monkeypatch.setattr("experiments.runs.estimate.TIMED", 1)
    assert not run_experiment(small_config(base), tmp_path, say=said.append).failed
    assert "the time cannot be estimated (OutOfMemoryError: tried to allocate 80 GiB)" in said

"""An experiment from config to report: what it leaves, that it is the same each time, and how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed import DistNetworkError

from experiments.common.errors import ConfigError, MachineError, RunError, Stopped
from experiments.evaluation.suites.kept import KeptSuite
from experiments.posthoc.run import posthoc
from experiments.runs.run import errors_explained, run_experiment, run_folder
from experiments.scorecard import scorecard
from experiments.tracking.tracker import Tracker
from experiments.training.channel import AbortLaunch
from tests.helpers.small_run import small_config, small_values
from tests.helpers.tracking_store import statuses

pytestmark = pytest.mark.slow


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
    for metric in ("retention", "gain", "kl"):  # step 0: the base model
        assert [m.step for m in tracker.client.get_metric_history(run.info.run_id, metric)] == [0, 2, 4], metric
    assert [name for name in run.data.metrics if name.startswith("layers/alpha_")]
    assert int(run.data.params["cost/trainable_parameters"]) > 0
    assert "cost/trainable_parameters" not in run.data.metrics
    assert "cost/seconds" in run.data.metrics
    assert run.data.tags["mlflow.note.content"].startswith("| arm")
    assert all(run.data.tags["mlflow.note.content"] for run in runs.values())
    assert not [name for name in runs["small"].data.metrics if "full" in name or "control" in name]
    assert run.data.tags["mlflow.parentRunId"] == runs["small"].info.run_id


def test_a_second_call_trains_nothing(store: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.runs.arm_training.train_arm", None)  # would fail if it were called
    said: list[str] = []
    outcome = run_experiment(small_config(base), store, say=said.append)
    assert len(outcome.results) == 2
    assert not outcome.failed
    assert any("finished already" in line for line in said)
    assert not any("have changed" in line for line in said)
    monkeypatch.setattr(KeptSuite, "version", 99)  # as another version of the bench
    assert run_experiment(small_config(base), store, say=said.append).results == outcome.results
    assert any(line.startswith("warning: kept: the questions, or the code that asks them") for line in said)


def test_the_same_config_gives_the_same_bits_and_each_evaluation_is_scored_once(
    store: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def counted(base: Any, after: Any, *rest: Any) -> Any:
        scored.append(len(after))
        return scorecard(base, after, *rest)

    monkeypatch.setattr("experiments.runs.baseline.scorecard", counted)
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


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("experiments.training.trainer.Trainer._save", OSError(28, os.strerror(28)), "no space left on the disk"),
        ("experiments.runs.arm_training.train_arm", MemoryError(), "a fault of the machine: MemoryError"),
        ("experiments.training.trainer.Trainer._save", OSError(5, os.strerror(5)), "Input/output error"),
    ],
)
def test_a_fault_of_the_machine_stops_the_run_and_loses_nothing(
    store: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception, said: str
) -> None:
    root = tmp_path / "mlruns"
    shutil.copytree(store / "runs", root / "runs")
    folder = run_folder(small_config(base), root)
    shutil.rmtree(folder / "arms" / "control-0.01")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(place, broken)
        with pytest.raises(MachineError, match=said):
            run_experiment(small_config(base), root)
    assert (folder / "arms" / "full-0.001" / "result.json").is_file()
    assert (folder / "arms" / "control-0.01" / "items-2.jsonl").is_file() == ("_save" in place)
    assert not (folder / "arms" / "control-0.01" / "result.json").is_file()
    outcome = run_experiment(small_config(base), root)
    assert not outcome.failed


@pytest.mark.parametrize("fresh", [True, False])
def test_a_run_folder_that_is_a_link_is_not_emptied(base: str, tmp_path: Path, fresh: bool) -> None:
    """Without --fresh a link to a folder is used as the folder; a link to nothing is named."""
    config, target = small_config(base), tmp_path / "target"
    link = run_folder(config, tmp_path)
    link.parent.mkdir()
    link.symlink_to(target)
    if fresh:
        target.mkdir()
        (target / "kept").touch()
    with pytest.raises(RunError, match=r"small-\w+ is a link, .*: delete the link"):
        run_experiment(config, tmp_path, fresh=fresh, say=lambda text: None)
    assert not fresh or (target / "kept").exists()


def test_two_processes_on_one_run_are_refused(base: str, tmp_path: Path) -> None:
    from filelock import FileLock

    folder = run_folder(small_config(base), tmp_path)
    folder.parent.mkdir(parents=True)
    with FileLock(f"{folder}.lock"), pytest.raises(RunError, match="another process is running"):
        run_experiment(small_config(base), tmp_path)


def test_an_interrupt_frees_what_the_run_held_and_a_notebook_shows_one_line(tmp_path: Path) -> None:
    """IPython keeps the last traceback, whose frames would keep the model."""

    class Model: ...

    def trains() -> None:
        model = Model()
        held.append(weakref.ref(model))
        raise KeyboardInterrupt

    held: list[weakref.ref[Model]] = []
    with (
        pytest.raises(Stopped, match="the same call goes on from the last checkpoint") as caught,
        errors_explained(tmp_path),
    ):
        trains()
    assert held[0]() is None
    assert caught.value._render_traceback_() == [str(caught.value)]


def test_a_lost_connection_between_processes_says_where_it_was_lost(tmp_path: Path) -> None:
    lost = AbortLaunch("process 1 lost the connection to the others at 'done'")
    said = (
        "lost the connection to the others at 'done'\nThe cause is a fault of the machine: DistNetworkError: timed out"
    )
    with pytest.raises(MachineError, match=said), errors_explained(tmp_path):
        raise lost from DistNetworkError("timed out")


def test_weights_that_are_not_kept_are_nowhere(base: str, tmp_path: Path) -> None:
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "keep": "none"}
    outcome = run_experiment(small_config(base, arms=arms, training=training), tmp_path)
    assert [result.status for result in outcome.results] == ["finished"]
    assert not list(tmp_path.rglob("model.safetensors"))
    assert (outcome.folder / "arms/full-0.001/result.json").is_file()
    with pytest.raises(ConfigError, match=r"kept no trained weights \(training\.keep: none\): set it to last"):
        posthoc(outcome.folder, "full", 1e-3, "wise", [0.5])

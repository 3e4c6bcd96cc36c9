"""An experiment is tracked from its config to its end, and says how to go on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from experiments.common.errors import RunError
from experiments.common.files import write_text
from experiments.data.packing import packing
from experiments.runs.arm import ArmRun
from experiments.runs.experiment import _say_packing
from experiments.runs.run import run_experiment, run_folder
from experiments.tracking.tracker import Tracker
from tests.helpers.small_run import small_config, small_values
from tests.helpers.tracking_store import statuses

pytestmark = pytest.mark.slow


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
        raise RuntimeError("no suite today")

    monkeypatch.setattr("experiments.runs.prepared.measure_base", broken)
    with pytest.raises(RuntimeError, match="no suite today"):
        run_experiment(small_config(base), tmp_path)
    tracker = Tracker(tmp_path, "small")
    [run] = tracker.client.search_runs([tracker.experiment_id])
    assert run.info.status == "FAILED"
    assert {"config.yaml", "traceback.txt"} <= {file.path for file in tracker.client.list_artifacts(run.info.run_id)}


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


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (".", "the run's folder .* was removed while it ran"),
        ("base", r"base.items\.jsonl was removed while the run went on: start the same command again"),
        ("arms", r"arms.full-0\.001.result\.json was removed while the run went on"),
    ],
)
def test_a_run_whose_folder_was_removed_says_so(
    base: str, tmp_path: Path, part: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it too: the report would have figures whose records are gone."""
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    config = small_config(base, arms=arms)

    def removed(arm: ArmRun, *args: Any) -> None:
        write_text(arm.result_file, "{}")
        gone = run_folder(config, tmp_path) / part
        while gone.exists():  # the thread that delivers the journal may write its notes meanwhile
            shutil.rmtree(gone, ignore_errors=True)

    monkeypatch.setattr(ArmRun, "run", removed)
    with pytest.raises(RunError, match=said):
        run_experiment(config, tmp_path)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([10, 20, 30, 40], "2 rows of 100 tokens with padding, 38% less than the 160 without packing"),
        ([26, 26, 26, 60], "2 rows of 156 tokens with padding, 35% less than the 240 without packing"),
        ([60, 60, 60, 36], "3 rows of 288 tokens with padding, 20% more than the 240 without packing: few fit in one"),
    ],
)
def test_packing_that_computes_more_is_said(lengths: list[int], said: str) -> None:
    """It was `-20% less`."""
    lines: list[str] = []
    data = SimpleNamespace(packing_of=lambda *given: packing(lengths, 4, 96), rows=lambda arm: [])
    arm: Any = SimpleNamespace(
        prepared=SimpleNamespace(data=data), processes=SimpleNamespace(cut=lambda _: (4, 1)), training=None, arm=None
    )
    _say_packing(arm, SimpleNamespace(say=lines.append))  # type: ignore[arg-type]
    assert said in lines[0]

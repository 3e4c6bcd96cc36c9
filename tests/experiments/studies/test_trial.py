"""A study of the real engine on a tiny model: figures, seeds, runs in MLflow, the command line, killed processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments import cli
from experiments.records import ArmResult, Estimate
from experiments.studies.engine import Store
from experiments.studies.launch import run_study
from experiments.studies.trial import TrialFailed, figure, sum_of
from tests.experiments.small import tiny_base
from tests.experiments.studies.tiny import RATE, study_values, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_study_runs_tracks_reports_and_exports(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial that works with two seeds, one that cannot."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arms = {"full": {"arms.0.method": "full"}, "deep": {"arms.0.method": "control", "arms.0.control": {"layers": 9}}}
    values = study_values(base, search={"arm": {"kind": "arms", "arms": arms}}, seeds=[0, 1])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    root = tmp_path / "mlruns"
    places = ["--root", str(root)]
    assert cli.main(["study", str(tmp_path / "study.yaml"), *places]) == 0
    good, bad = Store(f"sqlite:///{root / 'optuna.db'}", name="tiny").trials()
    assert (good.state, bad.state) == ("complete", "failed")
    assert "layers=9: the model has 3 layers" in bad.reason
    results = [ArmResult.from_dict(run["result"]) for run in good.runs]
    assert good.values == [sum(r.scorecard["kl"].value for r in results) / 2]
    assert results[0].scorecard["kl"] != results[1].scorecard["kl"]
    on_disk = json.loads((root / good.runs[1]["folder"] / "arms" / "full-0.001" / "result.json").read_text())
    assert on_disk == json.loads(json.dumps(good.runs[1]["result"]))

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    kinds = {run_id: run.data.tags["kind"] for run_id, run in runs.items()}
    chains = sorted(" ".join(_chain(runs, kinds, run_id)) for run_id in runs)
    assert chains.count("study") == 1
    assert chains.count("trial study") == 2
    assert chains.count("experiment trial study") == 3  # two seeds, and the start of the one that failed
    assert chains.count("arm experiment trial study") == 2
    assert [r.info.status for r in runs.values() if kinds[r.info.run_id] == "study"] == ["FINISHED"]

    capsys.readouterr()
    assert cli.main(["status", "tiny", *places]) == 0
    assert "tiny: 1 complete, 1 failed of 2" in capsys.readouterr().out
    for name in ("t.csv", "t.parquet", "t.json"):
        assert cli.main(["export", "tiny", str(tmp_path / name), *places]) == 0
    table, same = pd.read_csv(tmp_path / "t.csv"), pd.read_parquet(tmp_path / "t.parquet")
    assert list(table.trial) == list(same.trial) == [0, 0, 1]
    assert list(table.kl[:2]) == list(same.kl[:2]) == pytest.approx([r.scorecard["kl"].value for r in results])
    assert json.loads((tmp_path / "t.json").read_text())["trials"][0]["runs"][0]["result"]["trajectory"]
    assert cli.main(["export", "tiny", str(tmp_path / "t.xls"), *places]) == 2
    assert cli.main(["report", "tiny", *places]) == 0
    assert "deep" in (root / "studies" / "tiny" / "report.md").read_text()

    before = sorted(path.stat().st_mtime for path in (root / "runs").rglob("items-*.jsonl"))
    assert cli.main(["resume", "tiny", *places]) == 0
    assert sorted(path.stat().st_mtime for path in (root / "runs").rglob("items-*.jsonl")) == before
    assert cli.main(["add-trials", "tiny", "2", *places]) == 1
    assert "has no budget of trials" in capsys.readouterr().err
    assert cli.main(["status", "tine", *places]) == 1
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_a_hopeless_trial_is_pruned_on_its_way(base: str, tmp_path: Path) -> None:
    pruner = {"name": "threshold", "options": {"upper": 0.0}}
    store = run_study(tiny_study(base, search={"rate": {**RATE, "values": [1e-2]}}, pruner=pruner), tmp_path)
    [trial] = store.trials()
    assert (trial.state, trial.values) == ("pruned", None)
    assert trial.reason.startswith("pruned at step 2: kl was ")
    assert [point["step"] for point in trial.runs[0]["result"]["trajectory"]] == [0, 2]


def test_figures_by_name_and_sums() -> None:
    result = ArmResult("a", "full", 1e-3, "finished", scorecard={"gain": Estimate(0.25), "nan": Estimate(float("nan"))})
    result.cost = {"seconds": 3.0}
    assert figure(result, "gain") == 0.25
    assert figure(result, "gain + cost/seconds") == 3.25
    assert sum_of(result.scorecard, "gain+gain") == 0.5
    with pytest.raises(TrialFailed, match="no figure 'gian' was measured: did you mean 'gain'"):
        figure(result, "gian + gain")
    with pytest.raises(TrialFailed, match="nan is nan"):
        figure(result, "nan")


@pytest.mark.slow
def test_kill_all_workers_at_random_moments(base: str, tmp_path: Path) -> None:
    """`study --workers 2` and its workers are killed; in the end every cell has run once and in one folder."""
    values = study_values(base, retries=50)
    values["base"]["training"]["steps"] = 12
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    root, moments = tmp_path / "mlruns", random.Random(1)
    command = [sys.executable, "-m", "experiments.cli", "study", str(tmp_path / "study.yaml"), "--root", str(root)]
    finished: dict[int, Any] = {}
    for attempt in range(3):
        log = tmp_path / f"log-{attempt}"
        with log.open("w") as file:
            process = subprocess.Popen([*command, "--workers", "2"], stdout=file, start_new_session=True)
        while "trial " not in log.read_text() and process.poll() is None:  # starting takes longer than a trial
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (root / "optuna.db").is_file():
            store = Store(f"sqlite:///{root / 'optuna.db'}", name="tiny")
            now = {trial.number: trial for trial in store.trials() if trial.state == "complete"}
            assert {number: now[number] for number in finished} == finished
            finished = now
    assert subprocess.run([*command, "--workers", "2"], check=False, capture_output=True).returncode == 0
    trials = Store(f"sqlite:///{root / 'optuna.db'}", name="tiny").trials()
    assert [trial.state for trial in trials] == ["complete"] * 4
    assert sum(trial.attempts for trial in trials) > 4, "no trial was hit: the test killed too early or too late"
    folders = [path for path in (root / "runs").iterdir() if path.is_dir()]
    assert len(folders) == 4
    for trial in trials:
        steps = [point["step"] for point in trial.runs[0]["result"]["trajectory"]]
        assert steps == list(range(0, 13, 2))


def _chain(runs: dict[str, Any], kinds: dict[str, str], run_id: str) -> list[str]:
    """Kinds of a run, its parent, and so on up."""
    parent = runs[run_id].data.tags.get("mlflow.parentRunId")
    return [kinds[run_id], *(_chain(runs, kinds, parent) if parent else [])]

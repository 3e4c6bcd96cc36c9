"""A study of the real engine on a tiny model: figures, seeds, runs in MLflow, the command line, killed processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from optuna.exceptions import StorageInternalError

from experiments.cli import main as cli
from experiments.common.errors import MachineError
from experiments.records import ArmResult, Estimate
from experiments.runs.arm import StopArm
from experiments.runs.outcome import Outcome
from experiments.studies.config import StudyConfig
from experiments.studies.launch import run_study
from experiments.studies.load import parse_study
from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed, _observer, figure, run_trial, sum_of
from experiments.tracking.tracker import Tracker
from experiments.training.checkpoints import COMPLETE
from experiments.training.trainer import ArmTrainer
from tests.helpers.tiny_study import RATE, study_values, tiny_study
from tests.helpers.toy_study import toy_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_a_trial_that_was_killed_after_its_figures_does_not_repeat_them(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process can die between the trial's figures and the storage, and the trial is then done again."""
    result = ArmResult("arm", "full", 1e-3, "finished", steps=4, scorecard={"kl": Estimate(0.5)})
    done = Outcome(tmp_path / "runs" / "r", [result], tmp_path / "report.html", "", "", {})
    monkeypatch.setattr("experiments.runs.run.run_experiment", lambda *_, **__: done)
    study = tiny_study(base, seeds=[0, 1])
    for _ in range(2):
        run_trial(study, 0, {"arm": "full", "rate": 1e-3}, tmp_path, None, say=lambda text: None)
    tracker = Tracker(tmp_path, study.name)
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    assert [m.value for m in tracker.client.get_metric_history(run.info.run_id, "kl")] == [0.5]


def test_study_runs_tracks_reports_and_exports(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial that works with two seeds, one that cannot."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arms = {"full": {"arms.0.method": "full"}, "deep": {"arms.0.learning_rates": [900.0]}}
    values = study_values(base, search={"arm": {"kind": "arms", "arms": arms}}, seeds=[0, 1])
    values["constraints"] = [{"figure": "kl", "max": 1e9}]
    values["posthoc"] = [{"arm": arm, "op": "wise", "alpha": 0.5} for arm in arms]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    root = tmp_path / "mlruns"
    places = ["--root", str(root)]
    assert cli.main(["study", str(tmp_path / "study.yaml"), *places]) == 0
    good, bad = Store(f"sqlite:///{root / 'optuna.db'}", name="tiny").trials()
    assert (good.state, bad.state) == ("complete", "failed")
    assert "loss became" in bad.reason or "not finite" in bad.reason
    results = [ArmResult.from_dict(run["result"]) for run in good.runs]
    assert good.values == [sum(r.scorecard["kl"].value for r in results) / 2]
    assert results[0].scorecard["kl"] != results[1].scorecard["kl"]
    on_disk = json.loads((root / good.runs[1]["folder"] / "arms" / "full-0.001" / "result.json").read_text())
    stored = json.loads(json.dumps(good.runs[1]["result"]))
    assert {name: on_disk[name] for name in stored} == stored

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    [whole] = [r for r in runs.values() if r.data.tags["kind"] == "trial" and r.info.status == "FINISHED"]
    assert whole.info.run_name == "#0 full"
    assert all(run.data.tags["mlflow.note.content"].strip() for run in runs.values())
    kinds = {run_id: run.data.tags["kind"] for run_id, run in runs.items()}
    chains = sorted(" ".join(_chain(runs, kinds, run_id)) for run_id in runs)
    assert chains.count("study") == 1
    assert chains.count("trial study") == 2
    assert chains.count("arm trial study") == 3  # two seeds, and the one that failed
    assert chains.count("posthoc arm trial study") == 2  # of both seeds; the failed arm has none
    assert len(chains) == 8
    seeds = {run.info.run_name for run_id, run in runs.items() if kinds[run_id] == "arm"}
    assert {f"#0 seed {seed} full" for seed in (0, 1)} < seeds
    assert [r.info.status for r in runs.values() if kinds[r.info.run_id] == "study"] == ["FINISHED"]
    for name in ("kl", "retention"):
        assert whole.data.metrics[name] == pytest.approx(sum(r.scorecard[name].value for r in results) / 2)
    assert re.fullmatch(r"\S+ \[\S+\]", whole.data.tags["interval/retention"])
    assert whole.data.metrics["feasible"] == 1
    assert (whole.data.params["method"], whole.data.params["learning_rate"]) == ("full", "0.001")
    assert "config.yaml" in [file.path for file in client.list_artifacts(whole.info.run_id)]
    assert (whole.info.run_name.split()[0], whole.data.tags["optuna_trial"]) == (f"#{good.number}", str(good.number))

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
    text = (root / "studies" / "tiny" / "report.md").read_text()
    [study_run] = [run_id for run_id, kind in kinds.items() if kind == "study"]
    attached = {Path(file.path).name for file in client.list_artifacts(study_run, "report")}
    assert {"report.html", "report.md", "table.csv", "forgetting.png"} <= attached
    assert "study.yaml" not in attached
    assert "| full-wise-0.5 |" in text
    assert "deep-wise-0.5 is not made yet" in text  # its trial failed
    assert "the intervals resample seeds and questions" in text
    assert "deep" in text
    shown = "Answers that turned" in text
    assert shown == any((root / run["folder"] / "answers.json").is_file() for run in good.runs[:1])

    before = sorted(path.stat().st_mtime for path in (root / "runs").rglob("items-*.jsonl"))
    assert cli.main(["resume", "tiny", *places]) == 0
    assert sorted(path.stat().st_mtime for path in (root / "runs").rglob("items-*.jsonl")) == before
    assert cli.main(["add-trials", "tiny", "2", *places]) == 1
    assert "has no budget of trials" in capsys.readouterr().err
    assert cli.main(["status", "tine", *places]) == 1
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_picks_that_do_not_go_together_fail_their_trial_alone(base: str, tmp_path: Path) -> None:
    search = {
        "structure": {"kind": "choice", "path": "arms.0.control.structure", "values": ["concat", "stack"]},
        "expanded": {"kind": "choice", "path": "arms.0.control.expanded", "values": ["full", "lora"]},
    }
    study = parse_study(study_values(base) | {"search": search})
    with pytest.raises(TrialFailed, match="expanded"):
        run_trial(study, 0, {"structure": "stack", "expanded": "lora"}, tmp_path, None, say=lambda text: None)


def test_a_trial_does_not_fail_when_the_studys_storage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that ends the connection in which the trial compares its data with others, and answers the next."""

    def away(*args: Any, **kwargs: Any) -> None:
        raise StorageInternalError("An exception is raised during the commit.")

    monkeypatch.setattr("experiments.runs.run.run_experiment", away)
    with pytest.raises(StorageInternalError, match="during the commit"):  # not TrialFailed: see `Store.work`
        run_trial(toy_study(), 0, {"training.steps": 1, "rate": 0.1}, tmp_path, None, say=lambda text: None)


def test_a_hopeless_trial_is_pruned_on_its_way(base: str, tmp_path: Path) -> None:
    pruner = {"name": "threshold", "options": {"upper": 0.0}}
    store = run_study(tiny_study(base, search={"rate": {**RATE, "values": [1e-2]}}, pruner=pruner), tmp_path)
    [trial] = store.trials()
    assert (trial.state, trial.values) == ("pruned", None)
    assert trial.reason.startswith("pruned at step 2: kl was ")
    assert [point["step"] for point in trial.runs[0]["result"]["trajectory"]] == [0, 2]


def test_a_trial_above_its_budget_of_kl_is_stopped_with_several_objectives(base: str, tmp_path: Path) -> None:
    objectives = [{"figure": "kl", "direction": "minimize"}, {"figure": "retention", "direction": "maximize"}]
    search = {"rate": {**RATE, "values": [1e-2]}}
    store = run_study(tiny_study(base, search=search, objectives=objectives, kl_budget=1e-12), tmp_path)
    [trial] = store.trials()
    assert (trial.state, trial.values) == ("pruned", None)
    assert trial.reason.startswith("stopped at step 2: kl was ")
    assert trial.reason.endswith(", above the budget of 1e-12")
    assert store.front() == []


@pytest.mark.parametrize(("kl", "stopped"), [(0.1, False), (0.2, True), (math.nan, True), (math.inf, True)])
def test_a_kl_that_is_no_number_is_above_each_budget(kl: float, stopped: bool) -> None:
    observe = _observer(toy_study(kl_budget=0.1), None, 0)
    with pytest.raises(StopArm, match=r"above the budget of 0\.1") if stopped else contextlib.nullcontext():
        observe("a", 2, {"kl": Estimate(kl)})


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
    names = ("forgetting", "nfr", "kept_accuracy")
    result.scorecard |= dict.fromkeys(names, Estimate(0.0)) | {"retention": Estimate(math.nan)}
    assert figure(result, "kept_accuracy + gain") == 0.25
    for name in ("forgetting", "gain + nfr"):  # of a base without a right answer
        with pytest.raises(TrialFailed, match=r"(forgetting|nfr): its base answers none of the kept questions"):
            figure(result, name)


def test_a_trial_whose_loss_is_no_number_fails_alone(base: str, tmp_path: Path) -> None:
    values = study_values(base, search={"rate": {**RATE, "values": [1000.0, 1e-3]}})
    values["base"]["training"] |= {"steps": 6, "warmup_steps": 0}
    values["base"]["evaluation"]["every"] = 6  # the loss is to find it, not the first evaluation
    _check_failure(parse_study(values), tmp_path, "loss became .*: lower the learning rate", "ArmFailed")


def test_a_trial_that_runs_out_of_memory_fails_alone(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ArmTrainer.training_step

    def too_large(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.args.learning_rate == 1e-2 and self.state.global_step == 2:  # after its first checkpoint
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ArmTrainer, "training_step", too_large)
    study = tiny_study(base, search={"rate": {**RATE, "values": [1e-2, 1e-3]}})
    _check_failure(study, tmp_path, "out of GPU memory: set training.micro_batch lower", "80 GiB")


def test_a_machine_without_memory_stops_the_study_and_no_trial_counts_as_failed(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any) -> None:
        raise MemoryError

    study = tiny_study(base, search={"rate": {**RATE, "values": [1e-3]}}, retries=0)
    with monkeypatch.context() as patched:
        patched.setattr("experiments.runs.arm_training.train_arm", no_memory)
        with pytest.raises(MachineError, match="a fault of the machine: MemoryError"):
            run_study(study, tmp_path, say=lambda text: None)
    assert not list(tmp_path.glob("runs/*/arms/*/result.json"))
    assert [trial.state for trial in run_study(study, tmp_path, say=lambda text: None).trials()] == ["complete"]


def _check_failure(study: StudyConfig, root: Path, reason: str, trace: str) -> None:
    """The first trial fails with its reason and traceback, everywhere; the second one is complete."""
    bad, good = run_study(study, root, say=lambda text: None).trials()
    assert (bad.state, good.state) == ("failed", "complete")
    assert re.match(reason, bad.reason)
    tracker = Tracker(root, study.name)
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.study = '{study.name}'")
    names = [run.data.tags.get("trial", "").partition(" ") for run in runs]  # `#0 rate=0.001`
    status = {(run.data.tags["kind"], name[0]): run.info.status for run, name in zip(runs, names, strict=True)}
    assert all(name[2] for name in names if name[0])
    assert status == {
        ("study", ""): "FINISHED",
        ("arm", "#0"): "FAILED",  # trial, experiment and arm are one run
        ("arm", "#1"): "FINISHED",
    }
    for run in runs:
        if run.info.status == "FAILED":
            assert re.match(reason, run.data.tags["error"])
            kept = tracker.client.download_artifacts(run.info.run_id, "traceback.txt")
            assert trace in Path(kept).read_text()
    assert not list(root.glob("runs/*/arms/*/checkpoints"))  # a study never comes back to this trial


def test_kill_all_workers_while_a_trial_trains(base: str, tmp_path: Path) -> None:
    """kill -9 of `study --workers 2` and of both workers, with a trial complete and another past its first checkpoint;
    the next start does the rest, from the checkpoint and in the same folders."""
    values = study_values(base, search={"rate": {**RATE, "values": [1e-3, 3e-3, 1e-2]}})
    values["base"]["training"]["steps"] = 8
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    root = tmp_path / "mlruns"
    command = [sys.executable, "-m", "experiments.cli", "study", str(tmp_path / "study.yaml"), "--root", str(root)]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (list(root.glob("runs/*/arms/*/result.json")) and _training(root)):
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    before = {trial.number: trial for trial in Store(f"sqlite:///{root / 'optuna.db'}", name="tiny").trials()}
    complete = {number: trial for number, trial in before.items() if trial.state == "complete"}
    hit = {
        number for number, trial in before.items() if trial.state in ("lost", "running")
    }  # a worker may still be dying
    assert hit, "no trial was running"
    half = _training(root)
    measured = {path: path.stat().st_mtime_ns for path in root.glob("runs/*/arms/*/items-*.jsonl")}
    folders = {path.name for path in (root / "runs").iterdir() if path.is_dir()}

    said: list[str] = []
    trials = run_study(parse_study(values), root, say=said.append).trials()
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert {trial.number for trial in trials if trial.attempts == 2} == hit
    assert {trial.number: trial for trial in trials if trial.number in complete} == complete
    begun = [int(line.split()[1].rstrip(":")) for line in said if line.startswith("trial ")]
    assert sorted(begun) == sorted(set(before) - set(complete))
    assert sum("continues from checkpoint-" in line for line in said) == len(half)
    assert {path.name for path in (root / "runs").iterdir() if path.is_dir()} >= folders
    assert len([path for path in (root / "runs").iterdir() if path.is_dir()]) == 3
    for path, time_before in measured.items():  # what was measured up to the checkpoint is not measured again
        label = f"{path.parents[2].name}/{path.parent.name}"
        if int(path.stem.removeprefix("items-")) <= half.get(label, 8):
            assert path.stat().st_mtime_ns == time_before, f"{path} was written again"
    for trial in trials:
        [run] = trial.runs
        assert [point["step"] for point in run["result"]["trajectory"]] == list(range(0, 9, 2))


def _training(root: Path) -> dict[str, int]:
    """Run/arm -> step of the last whole checkpoint, for arms that have one and no result."""
    found = {}
    for folder in root.glob("runs/*/arms/*"):
        whole = [int(path.parent.name.rsplit("-", 1)[1]) for path in folder.glob(f"checkpoints/*/{COMPLETE}")]
        if whole and not (folder / "result.json").is_file():
            found[f"{folder.parents[1].name}/{folder.name}"] = max(whole)
    return found


def _chain(runs: dict[str, Any], kinds: dict[str, str], run_id: str) -> list[str]:
    """Kinds of a run, its parent, and so on up."""
    parent = runs[run_id].data.tags.get("mlflow.parentRunId")
    return [kinds[run_id], *(_chain(runs, kinds, parent) if parent else [])]

"""Studies at their edges: the same picks twice, budgets that change, passwords, values that no file format has."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest

from experiments.common.errors import ConfigError, StudyError
from experiments.studies.launch import run_study
from experiments.studies.load import parse_study
from experiments.studies.queue import Store
from experiments.studies.report.table import export, status_text
from experiments.studies.report.write import write_study_report
from experiments.studies.selection import choose
from experiments.studies.storage import public_yaml, storage_url
from experiments.studies.trial import TrialOutcome
from experiments.tracking.machine import process_tags
from experiments.tracking.tracker import Tracker
from tests.experiments.studies.toy import SEARCH, logging_run, open_store, toy_study, value
from tests.helpers.studies import TABLE5, synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]
URL = "postgresql+psycopg://me:TOPSECRET@db.example:5432/studies"


def quiet(text: str) -> None:
    pass


def begun(log: Path) -> int:
    return log.read_text().count("begin")


def test_the_same_picks_are_not_trained_twice(tmp_path: Path) -> None:
    """A random sampler over two values, ten trials: two are run, eight take over their values."""
    search = {"training.steps": {"kind": "choice", "values": [1, 2]}}
    store = open_store(tmp_path, search=search, sampler="random", budget={"trials": 10})
    constrained: list[dict[str, Any]] = []

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        constrained.append(picks)
        runs = [{"seed": 0, "picks": picks}]
        return TrialOutcome([float(picks["training.steps"])], {"kl <= 1": picks["training.steps"] - 1.5}, runs)

    assert store.work(run, quiet) == "all 10 trials are finished"
    assert len(constrained) == 2
    trials = store.trials()
    assert len(trials) == 10
    assert all(t.state == "complete" and t.values == [float(t.picks["training.steps"])] for t in trials)
    assert all(t.feasible == (t.picks["training.steps"] == 1) for t in trials)
    originals = {t.number for t in trials if t.repeats is None}
    assert len(originals) == 2
    assert {t.repeats for t in trials} - {None} <= originals


def test_a_repeated_trial_is_no_row_of_its_own(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    trials = store.trials()
    again = replace(trials[0], number=9, repeats=0)
    assert [arm.trial.number for arm in choose(store.config, [*trials, again], tmp_path)] == [0, 2]  # 1 failed


def test_a_lower_budget_of_a_grid_that_has_begun_counts(tmp_path: Path) -> None:
    open_store(tmp_path)  # queues its six cells
    fewer = Store(f"sqlite:///{tmp_path / 'optuna.db'}", toy_study(budget={"trials": 2}))
    fewer.begin()
    assert fewer.work(logging_run(tmp_path / "log"), quiet) == "all 2 trials are finished"
    assert begun(tmp_path / "log") == 2


def test_a_study_is_finished_only_after_its_last_trial(tmp_path: Path) -> None:
    store, said = open_store(tmp_path, budget={"trials": 2}), list[str]()

    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        said.append(store.ended())
        return TrialOutcome([value(picks)])

    said.append(store.work(run, quiet))
    assert said == ["", "all 2 trials are claimed", "all 2 trials are finished"]


def test_cells_that_were_added_are_not_called_finished(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget={"trials": 2})
    store.work(logging_run(tmp_path / "log"), quiet)
    assert store.ended() == "all 2 trials are finished"
    store.add_trials(3)
    assert store.ended() == ""
    store.work(logging_run(tmp_path / "log"), quiet)
    assert begun(tmp_path / "log") == 5
    store.add_trials(9)
    store.work(logging_run(tmp_path / "log"), quiet)
    assert (begun(tmp_path / "log"), store.ended()) == (6, "all 6 cells of the grid are finished")


def test_a_study_opened_by_name_has_its_own_heartbeat(tmp_path: Path) -> None:
    open_store(tmp_path, heartbeat=600)
    storage = Store(f"sqlite:///{tmp_path / 'optuna.db'}", name="toy").storage
    assert (storage.heartbeat_interval, storage.grace_period) == (600, 1200)


def test_what_leaves_the_machine_has_no_password(tmp_path: Path) -> None:
    study = toy_study(storage=URL)
    assert "TOPSECRET" not in public_yaml(study)
    assert "postgresql+psycopg://me:***@db.example:5432/studies" in public_yaml(study)
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    store.config = store.config.model_copy(update={"storage": URL})
    write_study_report(store, tmp_path, tmp_path / "report")
    files = [path for path in (tmp_path / "report").iterdir() if path.suffix != ".png"]
    assert len(files) == 4
    assert not any("TOPSECRET" in path.read_text() for path in files)
    own = tmp_path / "studies" / store.config.name
    own.mkdir(parents=True)
    (own / "study.yaml").write_text("what workers read")
    write_study_report(store, tmp_path, own)
    assert (own / "study.yaml").read_text() == "what workers read"


def test_workers_get_the_storage_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line can be read by every user of the machine."""
    started: list[tuple[list[str], dict[str, str]]] = []

    class Ends:
        pid, returncode = 0, 0

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append((command, env))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("experiments.studies.launch.subprocess", SimpleNamespace(Popen=Ends))
    monkeypatch.setattr("experiments.studies.launch.apply_posthoc", lambda *args: None)
    url = f"sqlite:///{tmp_path / 'own.db'}"
    with pytest.raises(StudyError, match="ended before the trials did"):
        run_study(toy_study(), tmp_path, workers=1, storage=url, say=quiet)
    [(command, environment)] = started
    assert not any("own.db" in word for word in command)
    monkeypatch.setenv("STUDY_STORAGE", environment["STUDY_STORAGE"])
    assert storage_url(tmp_path, None) == url


def test_who_joins_leaves_the_studys_mlflow_run_to_the_one_who_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first to end would mark it finished while the other trains, and a kill would go unseen."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("experiments.studies.launch.work", lambda store, root, say: "all trials are finished")
    note = tmp_path / "studies" / "toy" / "mlflow.json"
    run_study(toy_study(), tmp_path, say=quiet)
    [began] = study_runs(tmp_path)
    assert json.loads(note.read_text()) == {"run_id": began}  # nobody works on it any more
    with subprocess.Popen(["sleep", "60"]) as other:
        started = f"{psutil.Process(other.pid).create_time():.0f}"
        owner = {**process_tags(), "pid": str(other.pid), "pid_started": started}
        note.write_text(json.dumps({"run_id": "x", "owner": owner}))
        run_study(toy_study(), tmp_path, say=quiet)
        assert json.loads(note.read_text())["run_id"] == "x"
        assert study_runs(tmp_path) == [began]
        other.kill()
    run_study(toy_study(), tmp_path, say=quiet)  # its owner is dead, and the run is unknown: a new one
    assert len(study_runs(tmp_path)) == 2


def study_runs(root: Path) -> list[str]:
    tracker = Tracker(root, "toy")
    return [run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id], "tags.kind = 'study'")]


@pytest.mark.parametrize("url", ["foo", "postgresql+psycopg://u:pw@127.0.0.1:port/x"])
def test_what_is_no_url_is_said_to_be_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(StudyError, match="not a database URL") as caught:
        storage_url(tmp_path, url)
    assert ":pw@" not in str(caught.value)


def test_files_of_trials_without_picks_or_with_what_is_no_number(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, {"full": TABLE5["full"]}, report={})
    broken = store.trials()[0]
    broken.runs[0]["result"]["scorecard"]["kl"]["value"] = float("nan")
    mixed = replace(broken, number=7, picks={**broken.picks, "rate": "low"})
    store.trials = lambda: [broken, mixed, replace(broken, number=8, picks={})]  # type: ignore[method-assign]
    export(store, tmp_path / "t.json")
    read = json.loads((tmp_path / "t.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read["trials"][0]["runs"][0]["result"]["scorecard"]["kl"]["value"] is None
    export(store, tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["pick/rate"].isna().tolist() == [False, False, True]


def test_status_counts_what_keeps_the_constraints(tmp_path: Path) -> None:
    store = open_store(tmp_path, constraints=[{"figure": "kl", "max": 0.5}])
    run = logging_run(tmp_path / "log")
    store.work(lambda n, p, r: replace(run(n, p, r), constraints={"kl <= 0.5": value(p) - 1}), quiet)
    assert "within the constraints: 2 of 6 complete" in status_text(store, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": {"seed": {"kind": "choice", "values": [0, 1]}}}, "list the seeds of each trial under seeds"),
        ({"overrides": {"seed": 7}}, "list the seeds of each trial under seeds"),
        ({"overrides": {"name": "x"}}, "runs are named by study, trial and seed"),
        ({"search": SEARCH | {"again": {**SEARCH["rate"]}}}, "two dimensions set 'arms.0.learning_rates.0'"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"constraints": [{"figure": "kl", "min": 2, "max": 1}]}, "min=2 is above max=1"),
        (
            {"search": {"training.weight_decay": {"kind": "float", "low": 0, "high": float("inf")}}, "sampler": "tpe"},
            "low and high must be finite",
        ),
    ],
)
def test_values_that_could_not_work_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        toy_study(**change)


def test_steps_of_a_float_are_the_numbers_that_one_would_write() -> None:
    search = {"training.weight_decay": {"kind": "float", "low": 0.0, "high": 0.3, "step": 0.1}}
    assert parse_study(toy_study(search=search).to_dict()).search["training.weight_decay"].points() == [
        0,
        0.1,
        0.2,
        0.3,
    ]

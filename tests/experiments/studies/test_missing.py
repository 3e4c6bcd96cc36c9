"""A study that goes on with another store at the same place sends it the trials that are finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.commands import command
from experiments.common.files import read_note, write_json
from experiments.studies.missing import send_trials, trial_journals
from experiments.studies.trial import trial_folder
from experiments.studies.trials import Trial
from experiments.tracking.tracker import Tracker
from tests.helpers.toy_study import toy_study

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


def opened(tracker: Tracker, name: str, file: Path, **options: Any) -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    known = read_note(file).get("run_id")
    return tracker.run(name, run_id=known, note=lambda run_id: write_json(file, {"run_id": run_id}), **options)


def finished(number: int) -> Trial:
    return Trial(number, "complete", {}, [1.0], "", 1, 1.0, True, runs=[{"seed": 0, "folder": f"runs/r{number}"}])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "mlruns"


def test_finished_trials_are_sent_with_their_runs_below_the_new_run_of_the_study(root: Path) -> None:
    """Somebody deleted mlflow.db: the study logged itself and later trials alone."""
    study, trials, said, names = toy_study(), [finished(0), finished(1)], list[str](), list[dict[str, str]]()
    tracker = Tracker(root, study.name)
    for _ in range(3):  # the last finds everything there
        with opened(tracker, "toy", root / "studies" / "toy" / "mlflow.json", kind="study") as above:
            for trial in trials if not names else ():
                note = trial_folder(study, root, trial.number) / "mlflow.json"
                with opened(tracker, f"#{trial.number}", note, kind="trial", parent=above.id) as run:
                    arm = {"kind": "arm", "parent": run.journal.run, "folder": root / "runs" / f"r{trial.number}"}
                    with opened(tracker, f"arm of {trial.number}", arm["folder"] / "mlflow.json", **arm) as below:
                        below.log_metrics({"loss": 1.5}, 7)
            send_trials(study, trials, root, tracker, said.append)
        runs = {run.info.run_id: run for run in tracker.client.search_runs([tracker.experiment_id])}
        parents = {run_id: run.data.tags.get("mlflow.parentRunId") for run_id, run in runs.items()}
        names.append({run.info.run_name: run_id for run_id, run in runs.items()})
        assert set(names[-1]) == {"toy", "#0", "#1", "arm of 0", "arm of 1"}
        for number in (0, 1):
            assert parents[names[-1][f"#{number}"]] == names[-1]["toy"]
            assert parents[names[-1][f"arm of {number}"]] == names[-1][f"#{number}"]
            assert runs[names[-1][f"arm of {number}"]].data.metrics["loss"] == 1.5
        if len(names) == 1:
            for run_id in runs:
                tracker.client.delete_run(run_id)
    assert not set(names[0].values()) & set(names[1].values())
    assert names[1] == names[2]
    assert said == []


def test_what_cannot_be_sent_is_said_with_the_command_that_sends_it(root: Path) -> None:
    study, said = toy_study(), list[str]()
    tracker = Tracker(root, study.name)
    note = trial_folder(study, root, 0) / "mlflow.json"
    with pytest.warns(UserWarning, match="the parent run ffff"), opened(tracker, "#0", note, parent="f" * 32):
        pass
    assert trial_journals(study, [finished(1)], root) == [], "it is of an archive, or of another machine"
    tracker.delivery.message = ""
    send_trials(study, [finished(0)], root, tracker, said.append)
    assert len(said) == 1
    assert "the parent run ffff" in said[0]
    assert command("sync", root) in said[0]

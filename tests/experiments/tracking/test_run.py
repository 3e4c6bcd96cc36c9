"""What a run keeps, and the true status in which it ends, however it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.tracking.client import key
from experiments.tracking.diff import code_diff
from experiments.tracking.machine import code_tags, hardware_tags
from experiments.tracking.run import flatten
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import artifacts, read


def test_a_run_keeps_figures_params_tags_files_and_its_parent(root: Path, tmp_path: Path) -> None:
    tracker = Tracker(root, "demo")
    (tmp_path / "items.jsonl").write_text("{}\n")
    with tracker.run("demo", params={"training": {"steps": 60}}) as parent:
        parent.log_note("| arm |\n|---|\n| full |")
        with tracker.run("full 0.001", kind="arm", parent=parent.id, tags={"colour": "blue"}) as run:
            run.log_metrics({"gain": 0.25, "word": "no number"}, 20)
            run.log_metrics({"gain": 0.5}, step=40)
            run.log_file(tmp_path / "items.jsonl", "records")
    info = read(tracker, run)
    assert info.info.status == "FINISHED"
    assert [(m.step, m.value) for m in tracker.client.get_metric_history(run.id, "gain")] == [(20, 0.25), (40, 0.5)]
    assert list(info.data.metrics) == ["gain"]
    assert info.data.tags.items() >= {"kind": "arm", "parent": parent.id, "colour": "blue"}.items()
    assert artifacts(tracker, run, "records") == ["records/items.jsonl"]
    assert read(tracker, parent).data.params == {"training.steps": "60"}
    assert read(tracker, parent).data.tags["mlflow.note.content"].startswith("| arm |")
    children = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent.id}'")
    assert [child.info.run_id for child in children] == [run.id]
    assert run.faults == parent.faults == 0


def test_artifacts_stay_in_the_store_when_the_working_directory_moves(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    tracker = Tracker(Path("mlruns"), "demo")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with tracker.run("demo", kind="arm") as run:
        run.log_text("hello", "note.txt")
    assert [p.read_text() for p in (root / "artifacts").rglob("note.txt")] == ["hello"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_exception_fails_the_run_and_keeps_its_traceback(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with pytest.raises(ZeroDivisionError, match="division"), tracker.run("demo") as parent:  # noqa: SIM117
        with tracker.run("arm", kind="arm", parent=parent.id) as run:
            1 / 0  # noqa: B018
    for each in (parent, run):
        assert read(tracker, each).info.status == "FAILED"
        assert read(tracker, each).data.tags["error"] == "division by zero"
        assert "traceback.txt" in artifacts(tracker, each)


def test_a_caught_failure_fails_its_run_alone(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo") as parent, tracker.run("arm", kind="arm", parent=parent.id) as run:
        run.fail("loss became nan at step 3")
    assert read(tracker, run).info.status == "FAILED"
    assert read(tracker, run).data.tags["error"] == "loss became nan at step 3"
    assert read(tracker, parent).info.status == "FINISHED"


def test_ctrl_c_kills_the_run(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with pytest.raises(KeyboardInterrupt), tracker.run("demo") as run:  # noqa: PT012
        run.log_metrics({"loss": 1.0}, 1)
        raise KeyboardInterrupt
    assert read(tracker, run).info.status == "KILLED"
    assert read(tracker, run).data.metrics == {"loss": 1.0}


def test_continuing_an_unknown_run_makes_a_new_one_and_params_stay_as_they_were(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", run_id="0" * 32, params={"steps": 60}) as run:
        pass
    assert run.id not in ("", "0" * 32)
    with tracker.run("demo", run_id=run.id, params={"steps": 90, "seed": 1}) as again:
        pass
    assert read(tracker, again).data.params == {"steps": "60", "seed": "1"}
    assert again.faults == 0


def test_params_are_flattened_and_cut_to_what_the_store_takes(root: Path) -> None:
    nested = {"arms": [{"name": "full", "lr": (1e-3, 1e-4)}], "task": {"a b?": None}, "long": "x" * 7000}
    flat = flatten(nested)
    assert flat["arms.0.name"] == "full"
    assert json.loads(flat["arms.0.lr"]) == [1e-3, 1e-4]
    assert flat[key("task.a b?")] == "None"
    assert len(flat["long"]) == 6000
    assert flat["long"].endswith("x...")
    tracker = Tracker(root, "demo")
    many = {f"p{i}": i for i in range(250)} | nested | {"n" * 300: 1}
    with tracker.run("demo", kind="arm", params=many, tags={"long": "y" * 9000}) as run:
        run.log_metrics({f"m{i}": float(i) for i in range(2500)} | {"nan": float("nan"), "odd[name]": 1.0}, 1)
    assert run.faults == 0
    assert len(read(tracker, run).data.params) == 255
    assert len(read(tracker, run).data.metrics) == 2502


def test_an_experiment_notes_code_packages_and_machine(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo") as run:
        pass
    tags = read(tracker, run).data.tags
    few = {name: value for name, value in code_tags().items() if not name.startswith("version/")}
    assert tags.items() >= few.items()
    assert not [name for name in tags if name.startswith(("version/", "hardware/"))]  # they would hide the others
    environment = json.loads(Path(tracker.client.download_artifacts(run.id, "environment.json")).read_text())
    assert environment == {**code_tags(), **hardware_tags()}
    assert environment["version/torch"]
    assert int(environment["hardware/cores"]) >= 1
    assert ("code/uncommitted.diff" in artifacts(tracker, run, "code")) == bool(code_diff())
    if tags.get("code"):
        assert len(tags["mlflow.source.git.commit"]) == 40


def test_steps_that_a_resumed_process_repeats_are_logged_once(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", folder=root / "a") as run:
        for step in (1, 2, 3):
            run.log_new({"loss": 1.0 / step}, step)
        run.log_new({"gain": 0.5}, 2)
    with tracker.run("demo", folder=root / "a", run_id=run.id) as run:
        for step in (2, 3, 4):
            run.log_new({"loss": 1.0 / step}, step)
            run.log_new({"gain": 0.5}, step)
    history = {name: tracker.client.get_metric_history(run.id, name) for name in ("loss", "gain")}
    assert [(m.step, m.value) for m in history["loss"]] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert [m.step for m in history["gain"]] == [2, 3, 4]


def test_a_run_says_that_it_goes_on_with_other_versions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, known, said = Tracker(root, "demo"), [""], []
    for version in ("1.0", "1.0", "2.0"):
        monkeypatch.setattr("experiments.tracking.tracker.code_tags", lambda v=version: {"version/torch": v})
        with tracker.run("demo", folder=root / "a", run_id=known[-1], note=known.append) as run:
            said.append(run.changed_versions())
    assert said == ["", "", "torch 1.0, and goes on with 2.0"]

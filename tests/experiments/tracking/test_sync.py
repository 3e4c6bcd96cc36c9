"""Sync sends what a store missed, once, and names what it cannot do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main as cli
from experiments.common.commands import command
from experiments.common.errors import TrackingError
from experiments.common.files import read_note, write_json
from experiments.tracking.journal import Delivered, Journal, journals
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import everything, start_training


@pytest.mark.slow
def test_sync_ends_a_run_whose_process_died_and_names_what_it_cannot_do(root: Path, tmp_path: Path) -> None:
    process, run_id = start_training(root)
    process.kill()
    process.wait(30)
    said = sync([root], root)
    assert list(said.values()) == [run_id]
    run = Tracker(root, "demo").client.get_run(run_id)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "its process died")
    with pytest.raises(TrackingError, match="no journal in"):
        sync([tmp_path / "nothing"], root)
    orphan = Journal.create(tmp_path / "orphan", "arm-x")
    orphan.append("start", name="x", experiment="demo", parent="f" * 32, run=None, tags={})
    assert "the parent run ffff" in sync([tmp_path / "orphan"], root)[orphan.path]


@pytest.mark.slow
def test_runs_that_no_store_saw_are_synced_with_their_parents_and_twice_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
        with pytest.warns(UserWarning, match="does not answer"):
            tracker = Tracker(root, "demo")
        unsent = pytest.warns(UserWarning, match=rf"later: {re.escape(command('sync'))} \S*/run$")
        with (
            unsent as said,
            tracker.run("demo", folder=tmp_path / "run", params={"steps": 3}) as parent,
            tracker.run("full", kind="arm", parent=parent.id, folder=tmp_path / "run" / "arm") as arm,
        ):
            arm.log_metrics({"loss": 1.5, "nan": float("nan")}, 7)
            arm.log_inputs([{"name": "chain_sum", "kind": "new", "digest": "abc", "share": 0.5}])
            arm.log_text("hello", "notes/note.txt")
            arm.fail("stopped")
        assert len(said) == 1  # the folder on top, whose journals lie before those below it; sent alone they would fail
        assert tracker.run_url(parent.id) == "http://127.0.0.1:9"
    local = Tracker(root, "demo")
    seen = []
    for _ in range(2):
        assert cli.main(["sync", str(tmp_path / "run"), "--root", str(root)]) == 0
        assert capsys.readouterr().out.startswith(f"store: sqlite:///{root.resolve() / 'mlflow.db'}\n")
        seen.append(everything(local))
        for note in (tmp_path / "run").rglob("*.delivered.json"):
            note.unlink()  # a crash between a delivery and the note of it, at its worst
    assert cli.main(["sync", str(tmp_path / "run"), "--root", str(root)]) == 0
    seen.append(everything(local))
    assert seen[0] == seen[1] == seen[2]
    runs = {run.info.run_name: run for run in local.client.search_runs([local.experiment_id])}
    assert runs["full"].data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
    assert (runs["full"].info.status, runs["demo"].info.status) == ("FAILED", "FINISHED")
    assert runs["full"].data.metrics["loss"] == 1.5
    assert runs["full"].inputs.dataset_inputs[0].dataset.digest == "abc"
    assert local.client.list_artifacts(runs["full"].info.run_id, "notes")[0].path == "notes/note.txt"
    assert parent.journal.path.name in capsys.readouterr().out


@pytest.mark.parametrize("event", ["artifact", "model"])
def test_the_journal_of_somebody_else_sends_no_file_of_this_machine(root: Path, tmp_path: Path, event: str) -> None:
    secret = tmp_path / "private" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("x")
    journal = Journal.create(tmp_path / "theirs", "experiment-x")
    journal.append("start", name="x", experiment="x", parent=None, run=None, tags={})
    named = {"artifact": {"to": "a"}, "model": {"name": "m", "params": {}, "step": 0, "metrics": []}}[event]
    for path in (secret, secret.parent, "../private", "../private/secret.txt"):
        journal.append(event, path=str(path), **named)
    journal.append("end", status="FINISHED")
    journal.close()
    said = sync([journal.folder], root)[journal.path]
    assert re.search(r"4 lines refused, the last: .*secret\.txt is outside of the run's folder, or a link", said)
    assert not list(root.rglob("secret.txt"))


def test_a_store_that_is_another_one_at_the_same_place_gets_everything(root: Path, tmp_path: Path) -> None:
    """Somebody deleted mlflow.db, or replaced it: the note next to the journal says that all has arrived."""
    journal = Journal.create(tmp_path / "run", "experiment-x")
    tags = {"kind": "experiment"}
    journal.append("start", name="x", experiment="demo", parent=None, run=None, tags=tags)
    journal.append("params", params={"steps": 3})
    journal.append("end", status="FINISHED")
    client = Tracker(root, "demo").client
    first = sync([tmp_path / "run"], root)[journal.path]
    client.delete_run(first)
    second = sync([tmp_path / "run"], root)[journal.path]
    assert second != first
    run = client.get_run(second)
    assert (run.info.status, run.data.params) == ("FINISHED", {"steps": "3"})
    journal.note(Tracker(root, "demo").uri, Delivered("0" * 32, journal.size))  # of a store that is gone
    assert sync([tmp_path / "run"], root)[journal.path] == second


def test_a_run_that_goes_on_sends_its_finished_parts_to_a_store_without_them(root: Path, tmp_path: Path) -> None:
    """Somebody deleted mlflow.db: a finished run that was started again logged itself alone."""
    folder, ids = tmp_path / "run", []
    tracker = Tracker(root, "demo")

    def opened(kind: str, place: Path, parent: str | None = None) -> Any:
        file = place / "mlflow.json"
        known = {"run_id": read_note(file).get("run_id"), "note": lambda run_id: write_json(file, {"run_id": run_id})}
        return tracker.run(place.name, kind=kind, parent=parent, folder=place, **known)

    for _ in range(3):  # the last finds everything there
        with opened("experiment", folder) as parent:
            for name in ("full", "control") if not ids else ():
                with opened("arm", folder / "arms" / name, parent.id) as arm:
                    arm.log_metrics({"loss": 1.5}, 7)
            assert tracker.send_missing(journals(folder)) == ""
            runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
            assert set(runs) == {"run", "full", "control"}
            for name in ("full", "control"):
                assert runs[name].data.metrics["loss"] == 1.5
                assert runs[name].data.tags["mlflow.parentRunId"] == parent.id == runs["run"].info.run_id
                assert read_note(folder / "arms" / name / "mlflow.json")["run_id"] == runs[name].info.run_id
        ids.append({run.info.run_id for run in runs.values()})
        if len(ids) == 1:
            for run_id in ids[0]:
                tracker.client.delete_run(run_id)
    assert not ids[0] & ids[1]
    assert ids[1] == ids[2]


def test_a_part_that_cannot_be_sent_is_said(root: Path, tmp_path: Path) -> None:
    orphan = Journal.create(tmp_path / "run" / "arms" / "x", "arm-x")
    orphan.append("start", name="x", experiment="demo", parent="f" * 32, run=None, tags={})
    tracker = Tracker(root, "demo")
    assert tracker.send_missing(journals(tmp_path)) == "", "it may still run"
    orphan.append("end", status="FINISHED")
    assert "the parent run ffff" in tracker.send_missing(journals(tmp_path))
    tracker.delivery.message = "the store does not answer"
    assert tracker.send_missing(journals(tmp_path)) == ""


def test_a_folder_without_a_journal_is_named_though_others_have_one(root: Path, tmp_path: Path) -> None:
    Journal.create(tmp_path / "run", "arm-x").append(
        "start", name="x", experiment="demo", parent=None, run=None, tags={}
    )
    with pytest.raises(TrackingError, match=r"no journal in \S*/mistyped: give run folders"):
        sync([tmp_path / "run", tmp_path / "mistyped"], root)


def test_a_run_goes_on_as_one_after_it_was_deleted_in_the_store_and_sync_sent_it_again(root: Path) -> None:
    """The run's folder knows it by the id that the store gave it first. A store that was lost is the same."""
    folder, tracker, ids = root / "runs" / "a", Tracker(root, "demo"), list[str]()
    with tracker.run("a", folder=folder, note=ids.append):
        pass
    first = ids[-1]
    tracker.client.delete_run(first)
    (again,) = sync([folder], root).values()
    with Tracker(root, "demo").run("a", folder=folder, run_id=first, note=ids.append):
        pass
    assert first != again == ids[-1]
    assert len(journals(folder)) == 1
    (found,) = tracker.client.search_runs([tracker.experiment_id])
    assert (found.info.run_id, found.info.status) == (again, "FINISHED")

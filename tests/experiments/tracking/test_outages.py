"""A store that is slow, locked, broken or away never stops training, and gets all later."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main as cli
from experiments.common.commands import command
from experiments.common.errors import TrackingError
from experiments.tracking import delivery
from experiments.tracking.journal import Journal
from experiments.tracking.sync import download, sync
from experiments.tracking.tracker import Tracker
from tests.helpers.stores import Broken, artifacts, everything, models, read, serve, stop

pytestmark = pytest.mark.slow


def test_what_the_store_misses_it_gets_on_its_return(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.0)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        tracker.store._client = broken = Broken(tracker.client)
        with pytest.warns(UserWarning, match="store is down; training goes on") as caught:  # noqa: PT031
            for step in range(5):
                run.log_metrics({"loss": float(step)}, step)
            run.log_text("kept", "note.txt")
            assert not tracker.delivery.drain(10)
            run.set_tags({"a": "b"})
        assert run.faults >= 1
        assert len(caught) == 1
        broken.up = True
        run.log_metrics({"loss": 5.0}, 5)
    assert [m.value for m in tracker.client.get_metric_history(run.id, "loss")] == [0, 1, 2, 3, 4, 5]
    assert read(tracker, run).data.tags["a"] == "b"
    assert int(read(tracker, run).data.tags["tracking_faults"]) >= 1
    assert "note.txt" in artifacts(tracker, run)
    assert read(tracker, run).info.status == "FINISHED"


def test_a_store_that_hangs_does_not_hold_up_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(root, "demo")
    let_go = threading.Event()
    with tracker.run("demo", kind="arm") as run:
        client = tracker.client

        class Hangs:
            def __getattr__(self, name: str) -> Any:
                let_go.wait(60)
                return getattr(client, name)

        tracker.store._client = Hangs()
        start = time.perf_counter()
        for step in range(500):
            run.log_metrics({"loss": 0.5}, step)
        assert time.perf_counter() - start < 5
        let_go.set()
    assert len(tracker.client.get_metric_history(run.id, "loss")) == 500


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


def test_a_store_locked_by_another_process_gets_all_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.0)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        other = sqlite3.connect(root / "mlflow.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        start = time.perf_counter()
        for step in range(100):
            run.log_metrics({"loss": 1.0}, step)
        assert time.perf_counter() - start < 2
        assert not tracker.delivery.drain(1)
        other.execute("ROLLBACK")
        other.close()
    assert len(tracker.client.get_metric_history(run.id, "loss")) == 100


def test_a_store_that_cannot_be_used_says_so_before_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.create(tmp_path / "run", "x")
    journal.append("start", name="x", experiment="demo", parent=None, run=None, tags={})
    (root / "mlflow.db").write_text("not a database")
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used"):
        Tracker(root, "demo")
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used"):
        sync([journal.folder], root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(TrackingError, match="unset MLFLOW_TRACKING_URI"):
        sync([journal.folder], root)


def test_a_database_that_is_away_stops_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("psycopg")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://nobody:secret@127.0.0.1:9/x")  # nothing listens there
        start = time.monotonic()
        with pytest.warns(UserWarning, match=r"nobody:\*\*\*@127.* does not answer .* kept in its journal"):
            tracker = Tracker(root, "demo")
        assert time.monotonic() - start < 30  # MLflow itself tries for two minutes
        assert tracker.reap() == []
        with pytest.warns(UserWarning, match=f"later: {re.escape(command('sync'))}"):  # noqa: SIM117
            with tracker.run("demo", folder=tmp_path / "run") as run:
                run.log_metrics({"loss": 1.0}, 1)
    assert not [warning for warning in recwarn if "training goes on" in str(warning.message)]
    sync([tmp_path / "run"], root)
    local = Tracker(root, "demo")
    [found] = local.client.search_runs([local.experiment_id])
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})


@pytest.mark.parametrize("uri", ["foo://bar", "mysql+nodriver://nobody@127.0.0.1:9/x"])
def test_a_uri_that_can_never_work_is_named_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"(?s)cannot be used.*Correct that URI .* unset MLFLOW_TRACKING_URI"):
        Tracker(root, "demo")


def test_a_run_that_is_deleted_while_it_goes_on_is_made_anew_with_all_it_has(root: Path) -> None:
    """Also for those who know it by its old id, such as children that start later."""
    tracker = Tracker(root, "demo")
    with tracker.run("demo", params={"steps": 2}) as run:
        old = run.id
        run.log_metrics({"loss": 1.0}, 1)
        assert tracker.delivery.drain(20)
        tracker.client.delete_run(old)
        run.log_metrics({"loss": 2.0}, 2)
        assert tracker.delivery.drain(20)
        with tracker.run("arm", kind="arm", parent=old):
            pass
        tracker.client.delete_run(run.id)  # once more, with nothing left to write but the end
    found = {r.info.run_name: r for r in tracker.client.search_runs([tracker.experiment_id])}
    assert set(found) == {"demo", "arm"}
    assert found["demo"].info.run_id == run.id != old
    assert run.faults == 0
    assert (found["demo"].info.status, found["demo"].data.params) == ("FINISHED", {"steps": "2"})
    assert [m.value for m in tracker.client.get_metric_history(run.id, "loss")] == [1, 2]
    assert (found["arm"].info.status, found["arm"].data.tags["experiment"]) == ("FINISHED", "demo")
    assert tracker.client.get_run(old).info.lifecycle_stage == "deleted"


def test_a_server_that_hangs_and_dies_in_mid_run_gets_all_later(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5994")
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.5)
    shutil.copy(template, tmp_path / "server.db")
    server = serve(tmp_path, 5994)
    try:
        tracker = Tracker(tmp_path / "mlruns", "demo")
        unsent = pytest.warns(UserWarning, match="training goes on")
        with unsent, tracker.run("demo", kind="arm", folder=tmp_path / "run", params={"steps": 90}) as run:
            for step in range(90):
                if step == 30:
                    assert tracker.delivery.drain(60)
                    os.killpg(server.pid, signal.SIGSTOP)  # it takes connections and says nothing
                if step == 60:
                    stop(server, signal.SIGKILL)
                start = time.perf_counter()
                run.log_metrics({"loss": float(step)}, step)
                assert time.perf_counter() - start < 1
                time.sleep(0.02)
            run.log_text("kept", "note.txt")
            (tmp_path / "run" / "trained").mkdir()
            (tmp_path / "run" / "trained" / "weights").write_text("kept")
            run.log_model(tmp_path / "run" / "trained", "full", figures=["loss"], step=89)
        server = serve(tmp_path, 5994)
        assert len(tracker.client.get_metric_history(run.id, "loss")) >= 30
        seen = []
        for _ in range(2):
            assert sync([tmp_path / "run"], tmp_path / "mlruns") == {run.journal.path: run.id}
            seen.append(everything(tracker) + models(tracker))
            run.journal.path.with_name(run.journal.path.stem + ".delivered.json").unlink()
        assert seen[0] == seen[1]
        info = seen[0][0][0]
        assert info[1] == "FINISHED"
        loss = tracker.client.get_metric_history(info[0], "loss")
        assert [m.value for m in loss] == list(range(90))
        assert download(info[0], tmp_path / "mlruns", "note.txt").read_text() == "kept"
        [model] = models(tracker)
        assert model[1:4] == ("full", "READY", info[0])
        for source in (info[0], f"models:/{model[0]}"):
            assert (download(source, tmp_path / "mlruns") / "weights").read_text() == "kept"
    finally:
        stop(server)

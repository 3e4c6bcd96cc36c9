"""A store that is slow, locked, broken or away never stops training, and gets all later."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.tracking import delivery
from experiments.tracking.senders import deliver
from experiments.tracking.sync import download, sync
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import Broken, LosesAnswers, artifacts, everything, models, read, serve, stop

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


def test_a_server_that_does_its_work_and_answers_502_has_everything_once(root: Path) -> None:
    """Each request is done and reported as failed at first, so each is sent again."""
    tracker = Tracker(root, "demo")
    (root / "trained").mkdir(parents=True)
    (root / "trained" / "weights").write_text("kept")
    client = tracker.client
    tracker.store._client = Broken(client)
    options: dict[str, Any] = {"kind": "arm", "folder": root, "params": {"steps": 2}, "tags": {"a": "b"}}
    unsent = pytest.warns(UserWarning, match="store is down")
    with unsent, tracker.run("demo", **options) as run:
        run.log_metrics({"loss": 1.0, "gain": 0.5}, 1)
        run.log_text("kept", "note.txt")
        run.log_model(root / "trained", "full", figures=["loss"], step=1)
        run.log_metrics({"loss": 0.5}, 2)
    tracker.store._client = unsure = LosesAnswers(client)
    lost = 0
    while lost < 200:
        try:
            deliver(tracker.store, run.journal)
            break
        except OSError:
            lost += 1
    assert lost == len(unsure.asked) > 10
    tracker.store._client = client
    [(info, params, tags, history, _, outputs)] = everything(tracker)
    assert (info[1], params, tags["a"]) == ("FINISHED", {"steps": "2"}, "b")
    assert {name: [value for _, _, value in points] for name, points in history.items()} == {
        "loss": ["1.0", "0.5"],
        "gain": ["0.5"],
    }
    [model] = models(tracker)
    assert (model[1:4], outputs) == (("full", "READY", info[0]), [(model[0], 1)])
    assert "note.txt" in artifacts(tracker, run)


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


def test_a_server_that_hangs_and_dies_in_mid_run_gets_all_later(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        assert "View run" not in capsys.readouterr().out  # MLflow's own six lines per run
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

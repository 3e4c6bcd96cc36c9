"""Killed processes, and several at one store."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common.errors import TrackingError
from experiments.tracking.journal import Journal
from experiments.tracking.machine import process_alive, process_tags
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker
from tests.helpers.stores import ROOT, TRAIN, read, start_training


@pytest.mark.slow
def test_sigterm_kills_the_run_on_the_way_out(root: Path) -> None:
    process, run_id = start_training(root)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    run = Tracker(root, "demo").client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 2.0}


@pytest.mark.slow
def test_a_run_whose_process_died_is_reaped_and_can_be_continued(root: Path) -> None:
    process, run_id = start_training(root)
    tracker = Tracker(root, "other")
    assert tracker.reap() == []  # it still lives
    process.kill()
    process.wait(30)
    assert tracker.client.get_run(run_id).info.status == "RUNNING"
    assert tracker.reap() == [run_id]
    assert tracker.client.get_run(run_id).info.status == "KILLED"
    assert tracker.client.get_run(run_id).data.tags["error"] == "its process died"
    with Tracker(root, "demo").run("demo", run_id=run_id) as run:
        assert run.id == run_id
        assert read(tracker, run).info.status == "RUNNING"
        assert tracker.reap() == []  # it is this process's now
    assert read(tracker, run).info.status == "FINISHED"
    assert "error" not in read(tracker, run).data.tags


def test_whether_a_process_lives_is_decided_on_its_own_host_only() -> None:
    mine = process_tags()
    assert process_alive(mine)
    assert process_alive({})
    assert process_alive({**mine, "host": "elsewhere", "pid": "1", "boot_id": "x"})
    assert not process_alive({**mine, "boot_id": "before the restart"})
    assert not process_alive({**mine, "pid_started": "1000"})  # its id was given to another process
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not process_alive({**mine, "pid": str(ended.pid)})


@pytest.mark.slow
def test_several_processes_make_one_store(tmp_path: Path) -> None:
    code = TRAIN.replace("time.sleep(60)", "pass")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "new" / "mlruns")]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    with sqlite3.connect(tmp_path / "new" / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*) FROM experiments WHERE name = 'demo'").fetchone() == (1,)
        assert connection.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall() == [("FINISHED", 3)]
    with Tracker(tmp_path / "new" / "mlruns", "demo").client._tracking_client.store.engine.connect() as live:
        assert live.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


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

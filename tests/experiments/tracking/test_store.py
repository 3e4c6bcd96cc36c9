"""A tracking store: made once by several processes; one that is away or can never work is named."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.common.commands import command
from experiments.common.errors import TrackingError
from experiments.tracking.client import key
from experiments.tracking.journal import Journal
from experiments.tracking.store import TrackingStore, last_line
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import ROOT, THREE, read


@pytest.mark.slow
def test_several_processes_make_one_store(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", THREE, str(tmp_path / "new" / "mlruns")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=True)
    assert done.stderr.splitlines()[-1] == "0 0 0", done.stderr
    assert len(done.stdout.split()) == 3
    with sqlite3.connect(tmp_path / "new" / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*) FROM experiments WHERE name = 'demo'").fetchone() == (1,)
        assert connection.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall() == [("FINISHED", 3)]
    with Tracker(tmp_path / "new" / "mlruns", "demo").client._tracking_client.store.engine.connect() as live:
        assert live.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["foo://bar", "mysql+nodriver://nobody@127.0.0.1:9/x"])
def test_a_uri_that_can_never_work_is_named_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"(?s)cannot be used.*Correct that URI .* unset MLFLOW_TRACKING_URI"):
        Tracker(root, "demo")


def test_a_deleted_experiment_comes_back(root: Path) -> None:
    tracker = Tracker(root, "demo")
    tracker.client.delete_experiment(tracker.experiment_id)
    with Tracker(root, "demo").run("demo", kind="arm") as run:
        pass
    assert read(tracker, run).info.status == "FINISHED"


REFUSED = (
    "API request failed with exception HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: "
    "/api/2.0/mlflow/runs/get?run_id=0 (Caused by NewConnectionError(\"HTTPConnection(host='127.0.0.1', port=9): "
    'Failed to establish a new connection: [Errno 111] Connection refused"))'
)
SLOW = "HTTPConnectionPool('a'): Max retries (Caused by ReadTimeoutError(\"a: Read timed out. (read timeout=15)\"))"
FULL = "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]\n(Background on this error at: https://x)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FULL, "(sqlite3.OperationalError) database or disk is full"),
        ("no such table: runs\n[SQL: SELECT a\n LIMIT ? OFFSET ?]\n[parameters: (1,)]", "no such table: runs"),
        (REFUSED, "Connection refused"),
        (SLOW, "Read timed out. (read timeout=15)"),
        ("two\nlines", "lines"),
        ("", "RuntimeError"),
        ("(Background on this error at: https://x)", "(Background on this error at: https://x)"),
    ],
)
def test_the_reason_of_an_outage_is_its_innermost_cause(text: str, reason: str) -> None:
    assert last_line(RuntimeError(text)) == reason


def test_a_full_disk_is_no_reason_to_move_the_store_away(tmp_path: Path) -> None:
    said = str(TrackingStore(tmp_path).unusable(OSError(28, "No space left on device")))
    assert "No space left on device\nNothing recorded is lost: run the same command again" in said
    assert "Moving mlflow.db away" in str(TrackingStore(tmp_path).unusable(RuntimeError("file is not a database")))


def test_two_names_never_share_a_key() -> None:
    """The figures of tasks c+ and c# would be one series, and long names that differ at their end one value."""
    names = ["retention/c+", "retention/c#", "retention/c_", f"{'x' * 260}a", f"{'x' * 260}b", "x" * 250]
    keys = [key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert max(map(len, keys)) == 250
    assert keys[2] == "retention/c_"
    assert all(set(one) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-/") for one in keys)


def test_no_advice_of_mlflow_repeats_a_password(tmp_path: Path) -> None:
    """It does so without the URI around it."""
    store = TrackingStore(tmp_path, "databricks://bob:S3'CRET@host")
    said = str(store.unusable(ValueError("use 'databricks secrets put-secret bob S3'CRET@host-token'")))
    assert "put-secret bob ***@host-token" in said
    assert "CRET" not in said

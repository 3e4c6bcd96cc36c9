"""One run whatever the moment of a kill; the address and the command of the UI, and which store they are of."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from experiments.tracking import tracker as tracking
from experiments.tracking.journal import PATTERN, Delivered
from experiments.tracking.store import TrackingStore
from experiments.tracking.tracker import Tracker


def test_the_environment_can_name_another_store(
    root: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(template, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    tracker = Tracker(root, "demo")
    assert tracker.uri.endswith("other.db")
    assert tracker.ui_command().startswith('MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI" ')  # in no argument


@pytest.mark.parametrize(
    ("code", "said"),
    [("PERMISSION_DENIED", "refuses"), ("UNAUTHENTICATED", "refuses"), ("INTERNAL_ERROR", "does not answer")],
)
def test_a_server_that_answers_no_is_not_said_to_be_away(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(Exception):
        error_code = code

    def answers(*_: object) -> None:
        raise Answer("no")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(TrackingStore, "experiment", answers)
    with pytest.warns(UserWarning, match=rf"^http://127\.0\.0\.1:9 {said} \(no\): this run is kept in its journal"):
        Tracker(tmp_path, "demo")


def test_the_ui_address_of_a_run(root: Path) -> None:
    tracker = Tracker(root, "demo")
    end = f"/#/experiments/{tracker.experiment_id}/runs/abc?workflowType=machine_learning"
    assert tracker.run_url("abc") == f"http://127.0.0.1:5000{end}"
    assert tracker.run_url("abc", "http://gpu:80/") == f"http://gpu:80{end}"


class Killed(BaseException):
    """Act as after kill -9: nothing is written."""


@pytest.mark.parametrize("place", ["journal.Journal.append", "delivery.Delivery.drain"])
def test_a_process_killed_while_its_run_opens_leaves_one_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the journal has a line, and before the store has answered."""

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    noted = [""]
    with monkeypatch.context() as patched, pytest.raises(Killed):  # noqa: PT012
        patched.setattr(f"experiments.tracking.{place}", killed)
        with Tracker(root, "demo").run("demo", note=noted.append):
            pass
    tracker = Tracker(root, "demo")
    with tracker.run("demo", run_id=noted[-1], note=noted.append) as run:
        pass
    assert noted[-1] == run.id
    assert len(list(root.rglob(PATTERN))) == 1
    [found] = tracker.client.search_runs([tracker.experiment_id])
    assert (found.info.run_id, found.info.status) == (run.id, "FINISHED")


def test_every_run_that_can_be_continued_notes_its_id() -> None:
    """A call of Tracker.run with `run_id` and without `note` would make a second run after a kill."""
    calls = [
        {keyword.arg for keyword in node.keywords}
        for path in Path(tracking.__file__).parents[1].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    opened = [names for names in calls if {"kind", "run_id"} <= names]
    assert len(opened) == 6  # study, trial, experiment, arm, posthoc, measure
    assert all("note" in names for names in opened)


@pytest.mark.slow
def test_the_ui_command_serves_this_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PORT", 5993)
    monkeypatch.chdir(root.parent)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run.log_text("forgetting", "report.txt")
    server = subprocess.Popen(["bash", "-c", f"exec env {tracker.ui_command()}"], start_new_session=True)
    address = "http://127.0.0.1:5993"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                page = urllib.request.urlopen(f"{address}/", timeout=5).read().decode()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.5)
        assert "MLflow" in page
        found = urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run.id}", timeout=30).read()
        assert json.loads(found)["run"]["info"]["experiment_id"] == tracker.experiment_id
        file = f"{address}/get-artifact?path=report.txt&run_uuid={run.id}"
        assert urllib.request.urlopen(file, timeout=30).read() == b"forgetting"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_the_password_of_a_store_is_written_nowhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:S3CRET@127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking, "code_diff", lambda: "")  # which may hold this test
    tracker = Tracker(root, "demo")
    with contextlib.suppress(ConnectionError), tracker.run("demo", folder=tmp_path / "run") as run:
        run.journal.note(tracker.uri, Delivered("r", 1))
        raise ConnectionError("API request to http://bob:S3CRET@127.0.0.1:9/api failed")
    assert run.reason == "API request to http://bob:***@127.0.0.1:9/api failed"
    assert tracker.run_url("abc") == "http://127.0.0.1:9"
    assert tracker.ui_command().endswith(" -m webbrowser http://127.0.0.1:9")
    assert recwarn
    assert not [warning for warning in recwarn if "S3CRET" in str(warning.message)]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name.endswith(".delivered.json") for file in files)
    assert not [file for file in files if b"S3CRET" in file.read_bytes()]

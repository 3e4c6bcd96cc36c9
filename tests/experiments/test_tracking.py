"""Runs end in a true status however they end, the store survives several processes, and MLflow never stops training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest

from experiments import tracking
from experiments.machine import code_diff, code_tags, hardware_tags, process_alive, process_tags
from experiments.tracking import Run, Tracker, TrackingError, flatten

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    Tracker(root, "first")
    return root / "mlflow.db"


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose store is there already: making one takes a second or more."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    with sqlite3.connect(template) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(template, tmp_path / "mlruns" / "mlflow.db")
    return tmp_path / "mlruns"


def read(tracker: Tracker, run: Run) -> Any:
    return tracker.client.get_run(run.id)


def artifacts(tracker: Tracker, run: Run, folder: str | None = None) -> list[str]:
    return [file.path for file in tracker.client.list_artifacts(run.id, folder)]


class Broken:
    """A client whose store is down until `up`."""

    def __init__(self, client: Any) -> None:
        self.client, self.up = client, False

    def __getattr__(self, name: str) -> Any:
        if self.up:
            return getattr(self.client, name)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("store is down")

        return fail


def test_a_run_keeps_figures_params_tags_files_and_its_parent(root: Path, tmp_path: Path) -> None:
    tracker = Tracker(root, "demo")
    (tmp_path / "items.jsonl").write_text("{}\n")
    with tracker.run("demo", params={"training": {"steps": 60}}) as parent:
        parent.log_note("| arm |\n|---|\n| full |")
        with tracker.run("full 0.001", kind="arm", parent=parent.id, tags={"colour": "blue"}) as run:
            run.log_metrics({"gain": 0.25, "word": "no number"}, 20)
            run.log_metrics_at(40, {"gain": 0.5})
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


TRAIN = """
import sys, time
from pathlib import Path
from experiments.tracking import Tracker
with Tracker(Path(sys.argv[1]), "demo").run("demo") as run:
    run.log_metrics({"loss": 2.0}, 1)
    print(run.id, flush=True)
    time.sleep(60)
"""


def start_training(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_sigterm_kills_the_run_on_the_way_out(root: Path) -> None:
    process, run_id = start_training(root)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    run = Tracker(root, "demo").client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 2.0}


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


def test_continuing_an_unknown_run_makes_a_new_one_and_params_stay_as_they_were(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", run_id="0" * 32, params={"steps": 60}) as run:
        pass
    assert run.id not in ("", "0" * 32)
    with tracker.run("demo", run_id=run.id, params={"steps": 90, "seed": 1}) as again:
        pass
    assert read(tracker, again).data.params == {"steps": "60", "seed": "1"}
    assert again.faults == 0


def test_metrics_wait_while_the_store_is_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run._client = broken = Broken(tracker.client)
        with pytest.warns(UserWarning, match="store is down; training goes on") as caught:  # noqa: PT031
            for step in range(5):
                run.log_metrics({"loss": float(step)}, step)
            run.set_tags({"a": "b"})
            run.log_text("lost", "lost.txt")
        assert run.faults == 7
        assert len(caught) == 1
        broken.up = True
        run.log_metrics({"loss": 5.0}, 5)
    assert [m.value for m in tracker.client.get_metric_history(run.id, "loss")] == [0, 1, 2, 3, 4, 5]
    assert read(tracker, run).data.tags["tracking_faults"] == "7"
    assert read(tracker, run).info.status == "FINISHED"


def test_after_a_fault_training_is_not_slowed_by_one_attempt_per_step(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run._client = broken = Broken(tracker.client)
        with pytest.warns(UserWarning, match="store is down"):  # noqa: PT031
            for step in range(500):
                run.log_metrics({"loss": 0.5}, step)
        assert run.faults == 1
        broken.up = True
    assert len(tracker.client.get_metric_history(run.id, "loss")) == 500


def test_a_run_the_store_refuses_goes_on_untracked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(root, "demo")
    monkeypatch.setattr(tracker, "client", Broken(tracker.client))
    context = tracker.run("demo")
    with pytest.warns(UserWarning, match="cannot start 'demo', which goes on untracked: store is down"):
        run = context.__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.log_metrics({"loss": 1.0})
        run.log_params({"a": 1})
        run.fail("reason")
        context.__exit__(None, None, None)
    assert run.id == ""
    assert tracker.reap() == []


def test_params_are_flattened_and_cut_to_what_the_store_takes(root: Path) -> None:
    nested = {"arms": [{"name": "full", "lr": (1e-3, 1e-4)}], "task": {"a b?": None}, "long": "x" * 7000}
    flat = flatten(nested)
    assert flat["arms.0.name"] == "full"
    assert json.loads(flat["arms.0.lr"]) == [1e-3, 1e-4]
    assert flat["task.a b_"] == "None"
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
    assert tags.items() >= {**code_tags(), **hardware_tags()}.items()
    assert tags["version/torch"]
    assert int(tags["hardware/cores"]) >= 1
    assert ("code/uncommitted.diff" in artifacts(tracker, run, "code")) == bool(code_diff())
    if tags.get("code"):
        assert len(tags["mlflow.source.git.commit"]) == 40


def test_a_deleted_experiment_comes_back(root: Path) -> None:
    tracker = Tracker(root, "demo")
    tracker.client.delete_experiment(tracker.experiment_id)
    with Tracker(root, "demo").run("demo", kind="arm") as run:
        pass
    assert read(tracker, run).info.status == "FINISHED"


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


def test_a_store_that_cannot_be_used_says_so_before_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "mlflow.db").write_text("not a database")
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used"):
        Tracker(root, "demo")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(TrackingError, match="unset MLFLOW_TRACKING_URI"):
        Tracker(tmp_path / "mlruns", "demo")


def test_the_environment_can_name_another_store(
    root: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(template, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    tracker = Tracker(root, "demo")
    assert tracker.uri.endswith("other.db")
    assert '--backend-store-uri "$MLFLOW_TRACKING_URI"' in tracker.ui_command()


def test_the_ui_address_of_a_run(root: Path) -> None:
    tracker = Tracker(root, "demo")
    end = f"/#/experiments/{tracker.experiment_id}/runs/abc?workflowType=machine_learning"
    assert tracker.run_url("abc") == f"http://127.0.0.1:5000{end}"
    assert tracker.run_url("abc", "http://gpu:80/") == f"http://gpu:80{end}"


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

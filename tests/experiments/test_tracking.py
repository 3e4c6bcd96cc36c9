"""Runs end in a true status however they end, the store survives several processes, and MLflow never stops training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from experiments import cli
from experiments.models import load_base
from experiments.tracking import delivery, tracking
from experiments.tracking.journal import Journal
from experiments.tracking.machine import code_diff, code_tags, hardware_tags, process_alive, process_tags
from experiments.tracking.tracking import Run, Tracker, TrackingError, flatten, sync
from tests.experiments.small import tiny_base

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
from experiments.tracking.tracking import Tracker
with Tracker(Path(sys.argv[1]), "demo").run("demo") as run:
    run.log_metrics({"loss": 2.0}, 1)
    print(run.id, flush=True)
    time.sleep(60)
"""


def start_training(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


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


def test_continuing_an_unknown_run_makes_a_new_one_and_params_stay_as_they_were(root: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", run_id="0" * 32, params={"steps": 60}) as run:
        pass
    assert run.id not in ("", "0" * 32)
    with tracker.run("demo", run_id=run.id, params={"steps": 90, "seed": 1}) as again:
        pass
    assert read(tracker, again).data.params == {"steps": "60", "seed": "1"}
    assert again.faults == 0


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
        with tracker.run("demo", folder=tmp_path / "run", params={"steps": 3}) as parent:
            unsent = pytest.warns(UserWarning, match="later: python -m experiments.cli sync")
            with unsent, tracker.run("full", kind="arm", parent=parent.id, folder=tmp_path / "run" / "arm") as arm:
                arm.log_metrics({"loss": 1.5, "nan": float("nan")}, 7)
                arm.log_inputs([{"name": "chain_sum", "kind": "new", "digest": "abc", "share": 0.5}])
                arm.log_text("hello", "notes/note.txt")
                arm.fail("stopped")
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


def everything(tracker: Tracker) -> list[Any]:
    """All that the store knows of all runs, to compare."""
    found = []
    for run in tracker.client.search_runs([tracker.experiment_id]):
        history = {
            name: [
                (m.step, m.timestamp, str(m.value)) for m in tracker.client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        info = (run.info.run_id, run.info.status, run.info.start_time, run.info.end_time)
        inputs = [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs]
        found.append((info, run.data.params, run.data.tags, history, inputs))
    return sorted(found, key=lambda row: row[0])


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


def test_trained_tensors_come_back_from_the_store(root: Path, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    model, _ = load_base(base)
    ctrl.expand(model, ctrl.ControlConfig(layers=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    ctrl.save(model, tmp_path / "trained")
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run.log_model(tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained")
    again = ctrl.load(load_base(base)[0], tracking.download(run.id, "trained", root))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens).logits, model.eval()(tokens).logits)
        assert not torch.equal(load_base(base)[0].eval()(tokens).logits, model(tokens).logits)


def test_system_metrics_are_sampled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 0.0)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        time.sleep(0.1)
    metrics = read(tracker, run).data.metrics
    assert 0.01 < metrics["system/process_memory_gb"] < metrics["system/memory_used_gb"]


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


def serve(root: Path, port: int) -> subprocess.Popen[bytes]:
    """A real server on its own store; returns when it answers."""
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--artifacts-destination", str(root / "served"), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, "--workers", "1"], env=environment, cwd=root, start_new_session=True)
    deadline = time.monotonic() + 150
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            return server
        except OSError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.3)


def stop(server: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    if server.poll() is None:
        os.killpg(server.pid, number)
    server.wait(30)


@pytest.mark.slow
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
        server = serve(tmp_path, 5994)
        assert len(tracker.client.get_metric_history(run.id, "loss")) >= 30
        seen = []
        for _ in range(2):
            assert sync([tmp_path / "run"], tmp_path / "mlruns") == {run.journal.path: run.id}
            seen.append(everything(tracker))
            run.journal.path.with_name(run.journal.path.stem + ".delivered.json").unlink()
        assert seen[0] == seen[1]
        info = seen[0][0][0]
        assert info[1] == "FINISHED"
        loss = tracker.client.get_metric_history(info[0], "loss")
        assert [m.value for m in loss] == list(range(90))
        assert tracking.download(info[0], "note.txt", tmp_path / "mlruns").read_text() == "kept"
    finally:
        stop(server)


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

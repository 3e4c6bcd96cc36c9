"""Trained tensors are logged models of MLflow, made once, and come back from the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from experiments.common.files import write_text
from experiments.models.base import load_base
from experiments.tracking import delivery
from experiments.tracking import models as models_file
from experiments.tracking.journal import Delivered
from experiments.tracking.run import Run
from experiments.tracking.sync import download, sync
from experiments.tracking.tracker import Tracker
from tests.helpers.small_run import tiny_base
from tests.helpers.tracking_store import artifacts, everything, models, read

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder as an arm leaves it, but for its content."""
    (tmp_path / "run" / "trained").mkdir(parents=True)
    (tmp_path / "run" / "trained" / "weights").write_text("first")
    return tmp_path / "run" / "trained"


def notes(run: Run) -> Path:
    return run.journal.path.with_name(run.journal.path.stem + ".delivered.json")


def test_trained_tensors_come_back_from_the_store(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    base = tiny_base(tmp_path / "base")
    model, _ = load_base(base)
    ctrl.expand(model, ctrl.ControlConfig(layers=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    ctrl.save(model, tmp_path / "trained")
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run.log_model(tmp_path / "trained", "control")
    shutil.rmtree(tmp_path / "trained")
    [(model_id, *_)] = models(tracker)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        assert not torch.equal(load_base(base)[0].eval()(tokens).logits, expected)
        for source in (run.id, f"models:/{model_id}"):
            again = ctrl.load(load_base(base)[0], download(source, root))
            assert torch.equal(again.eval()(tokens).logits, expected)
        monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
        again = ctrl.load(load_base(base)[0], f"models:/{model_id}")  # as the UI shows it
        assert torch.equal(again.eval()(tokens).logits, expected)
        with pytest.raises(ctrl.CheckpointError, match="MLFLOW_TRACKING_URI"):
            ctrl.load(load_base(base)[0], "models:/m-0")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_model_belongs_to_its_run_and_is_made_once_however_often_it_is_delivered(root: Path, trained: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("full 0.001", kind="arm", folder=trained.parent) as run:
        run.log_metrics({"gain": 0.1}, 2)
        run.log_metrics({"gain": 0.25, "kl": float("nan"), "loss": 3.0}, 4)
        run.log_model(trained, "full: 1.5", {"learning_rate": 1e-3}, ["gain", "kl", "none"], 4)
    [(model_id, name, status, source, params, tags, figures, _)] = models(tracker)
    assert (name, status, source, params) == ("full_ 1_5", "READY", run.id, {"learning_rate": "0.001"})
    assert tags["journal_id"] == run.journal.id
    assert [(key, value, step) for key, value, _, step in figures] == [("gain", 0.25, 4)]
    assert [m.value for m in tracker.client.get_metric_history(run.id, "gain")] == [0.1, 0.25]
    assert [(o.model_id, o.step) for o in read(tracker, run).outputs.model_outputs] == [(model_id, 4)]
    assert "trained" not in artifacts(tracker, run)  # the files are not kept twice

    known, seen = run.journal.delivered(tracker.uri), [(models(tracker), everything(tracker))]
    assert known.models == {name: model_id}
    [before] = [behind for event, behind in run.journal.read() if event["event"] == "metrics" and event["step"] == 4]
    run.journal.note(tracker.uri, Delivered(run.id, before))  # a crash after the delivery and before its note
    sync([trained.parent], root)
    seen.append((models(tracker), everything(tracker)))
    assert run.journal.delivered(tracker.uri) == known
    notes(run).unlink()
    sync([trained.parent], root)
    seen.append((models(tracker), everything(tracker)))
    assert seen == [seen[0]] * 3


def test_a_crash_between_a_model_and_its_files_leaves_one_model(
    root: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.0)
    tracker = Tracker(root, "demo")

    def fail(*args: Any) -> None:
        raise OSError("disk is away")

    with tracker.run("demo", kind="arm", folder=trained.parent) as run:
        with monkeypatch.context() as away:
            away.setattr(models_file, "link_files", fail)
            run.log_model(trained, "full")
            assert not tracker.delivery.drain(60)
            assert [row[2] for row in models(tracker)] == ["PENDING"]
        tracker.delivery.announced = True  # the warning of the outage is tested elsewhere
        assert tracker.delivery.drain(60)
    assert [row[1:3] for row in models(tracker)] == [("full", "READY")]
    assert (download(run.id, root) / "weights").read_text() == "first"


@pytest.mark.parametrize("same_disk", [True, False])
def test_weights_are_not_stored_twice(
    root: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool
) -> None:
    """A file that is replaced in the run's folder leaves the store's as it was, as a copy would."""
    if not same_disk:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("Invalid cross-device link")))
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm", folder=trained.parent) as run:
        run.log_model(trained, "full")
    (kept,) = (path for path in (root / "artifacts").rglob("weights"))
    assert kept.samefile(trained / "weights") is same_disk
    write_text(trained / "weights", "second")
    assert kept.read_text() == "first"
    shutil.rmtree(trained)
    assert (download(run.id, root) / "weights").read_text() == "first"


def test_a_continued_run_replaces_the_files_of_its_model(root: Path, trained: Path) -> None:
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm", folder=trained.parent) as run:
        run.log_model(trained, "full")
    (trained / "weights").write_text("second")
    with tracker.run("demo", kind="arm", folder=trained.parent, run_id=run.id) as again:
        again.log_model(trained, "full")
        again.log_model(trained.parent / "nothing", "gone")
    assert [row[1:4] for row in models(tracker)] == [("full", "READY", run.id)]
    assert (download(run.id, root) / "weights").read_text() == "second"
    assert any("nothing is gone before it could be sent" in line for line in tracker.store.refused)


def test_a_server_without_logged_models_gets_an_artifact(
    root: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow's client raises where a server answers 404, as those of MLflow 2 do."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def unknown(*args: Any) -> None:
        raise MlflowException("API request to logged-models/search failed", ENDPOINT_NOT_FOUND)

    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm", folder=trained.parent) as run:
        monkeypatch.setattr(tracker.client, "search_logged_models", unknown)
        run.log_model(trained, "full")
    assert run.faults == 0
    assert artifacts(tracker, run, "trained") == ["trained/weights"]
    assert (download(run.id, root) / "weights").read_text() == "first"

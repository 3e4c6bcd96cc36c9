"""What the next start makes of runs whose process is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.common.files import _suffix
from experiments.tracking.journal import Journal
from experiments.tracking.machine import process_tags
from experiments.tracking.run import Run
from experiments.tracking.store import DIED
from experiments.tracking.sync import sync
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import Broken, everything, read, start_training

DEAD = process_tags() | {"boot_id": "before the restart"}


@pytest.fixture
def unsent(root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that finished after its store had gone; then its process ended."""
    tracker = Tracker(root, "demo")
    with monkeypatch.context() as patched, pytest.warns(UserWarning, match="store is down"):  # noqa: PT031
        patched.setattr("experiments.tracking.tracker.process_tags", lambda: DEAD)
        with tracker.run("demo", folder=root / "runs" / "demo") as run:
            tracker.store._client = Broken(tracker.client)
            run.log_metrics({"loss": 1.0}, 1)
            assert not tracker.delivery.drain(10)
    return run


def test_a_run_that_ended_while_the_store_was_away_gets_its_own_end(root: Path, unsent: Run) -> None:
    tracker = Tracker(root, "other")
    assert read(tracker, unsent).info.status == "RUNNING"
    assert tracker.reap() == []
    found = read(tracker, unsent)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert "error" not in found.data.tags


def test_a_run_that_another_folder_reaped_is_mended_by_its_journal(root: Path, unsent: Run, tmp_path: Path) -> None:
    shutil.move(unsent.journal.folder, tmp_path / "elsewhere")
    tracker = Tracker(root, "demo")
    assert len(tracker.reap()) == 1
    [found] = tracker.client.search_runs([tracker.experiment_id])
    assert (found.info.status, found.data.tags["error"]) == ("KILLED", DIED)
    sync([tmp_path / "elsewhere"], root)
    [found] = tracker.client.search_runs([tracker.experiment_id])
    assert found.info.status == "FINISHED"
    assert "error" not in found.data.tags


def test_a_run_without_an_end_is_killed_in_its_journal_too(root: Path) -> None:
    tracker = Tracker(root, "demo")
    living = Journal.create(root / "journals", "living")
    living.append("start", name="living", experiment="demo", parent=None, run=None, tags=process_tags())
    orphan = Journal.create(root / "journals", "orphan")
    orphan.append("start", name="orphan", experiment="demo", parent="f" * 32, run=None, tags=DEAD)
    journal = Journal.create(root / "journals", "dead")
    journal.append("start", name="dead", experiment="demo", parent=None, run=None, tags=DEAD)
    elsewhere = Journal.create(root / "journals", "elsewhere")
    elsewhere.append("start", name="elsewhere", experiment="demo", parent=None, run=None, tags=DEAD)
    elsewhere.note("http://another", elsewhere.delivered("http://another"))
    [killed] = tracker.reap()
    seen = everything(tracker)
    [found] = tracker.client.search_runs([tracker.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (killed, "dead", "KILLED")
    assert found.data.tags["error"] == DIED
    assert journal.ended()
    assert not living.ended()
    assert not elsewhere.ended()
    assert tracker.reap() == []
    assert everything(tracker) == seen


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


def test_temporary_files_of_dead_processes_are_deleted_wherever_they_are(root: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    names = {pid: f".x.json.abc{_suffix(pid)}" for pid in (ended.pid, os.getpid())}
    places = [root / name for name in ("runs/a/arms/b", "studies/s", "cache/base", "journals")]
    for place in places:
        place.mkdir(parents=True)
        for name in names.values():
            (place / name).touch()
    Tracker(root, "demo").reap()
    assert [sorted(file.name for file in place.iterdir()) for place in places] == [[names[os.getpid()]]] * 4

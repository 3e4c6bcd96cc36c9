"""What other machines sent to the store is found by tags, and nothing that the store does raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking.elsewhere import SharedStore
from experiments.tracking.tracker import Tracker
from tests.helpers.shared_store import stored, use_shared_store


def test_runs_are_found_by_the_end_of_their_tags_and_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = use_shared_store(tmp_path, monkeypatch)
    with Tracker(tmp_path / "one", "demo").run("a", tags={"run_folder": "/one/runs/x-12"}) as run:
        run.log_text("hello", "notes/note.txt")
    store = SharedStore.of(tmp_path / "two")
    (found,) = store.runs(run_folder="x-12", kind="experiment")
    assert found.info.run_id == run.id
    assert store.fetch(run.id, "notes/note.txt", tmp_path / "note.txt")
    assert (tmp_path / "note.txt").read_text() == "hello"
    assert not store.fetch(run.id, "notes/none.txt", tmp_path / "none.txt")
    (note,) = stored(artifacts, "notes/note.txt")
    note.unlink()
    assert not store.fetch(run.id, "notes/note.txt", tmp_path / "again.txt")
    assert not store.runs(run_folder="x-13")
    assert not store.runs(kind="' OR 1=1")  # no name of ours


def test_a_local_store_and_one_that_is_away_have_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not SharedStore.of(tmp_path).is_shared
    assert not SharedStore.of(tmp_path).runs(kind="arm")
    assert not list(tmp_path.iterdir())  # no store is made
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    away = SharedStore.of(tmp_path)
    assert not away.runs(kind="arm")
    monkeypatch.setattr("experiments.tracking.store.TrackingStore.client", None)
    assert not away.runs(kind="arm")  # it is not asked a second time
    assert not away.fetch("run", "file", tmp_path / "file")

"""A root that was copied or moved keeps its artifacts to itself."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from experiments.tracking.moved import keep_artifacts_here
from experiments.tracking.sync import download
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import artifacts

LATER = "copied or moved"


def logged(root: Path, text: str, run_id: str | None = None) -> str:
    """Log a file in a run, new or continued, and return the run's id."""
    with Tracker(root, "demo").run("demo", folder=root / "runs" / "demo", run_id=run_id) as run:
        run.log_text(text, "said.txt")
    return run.id


def test_a_copied_root_neither_writes_nor_reads_the_artifacts_of_the_first(root: Path, tmp_path: Path) -> None:
    made = logged(root, "first")
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    before = {file: file.read_bytes() for file in (root / "artifacts").rglob("*") if file.is_file()}
    with pytest.warns(UserWarning, match=LATER):
        assert logged(copy, "second", made) == made
    assert {file: file.read_bytes() for file in (root / "artifacts").rglob("*") if file.is_file()} == before
    assert download(made, copy, "said.txt").read_text() == "second"
    assert download(made, root, "said.txt").read_text() == "first"
    new = logged(copy, "third")  # no second warning, which would be an error here
    assert "said.txt" in artifacts(Tracker(copy, "demo"), type("Run", (), {"id": new}))
    assert (copy / "artifacts" / new).is_dir()


def test_a_moved_root_has_its_artifacts(root: Path, tmp_path: Path) -> None:
    made = logged(root, "first")
    moved = root.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=LATER):
        assert download(made, moved, "said.txt").read_text() == "first"
    assert not root.exists()


def test_places_of_others_and_the_same_folder_by_another_path_stay(root: Path, tmp_path: Path) -> None:
    logged(root, "first")
    (tmp_path / "link").symlink_to(root)
    tracker = Tracker(tmp_path / "link", "demo")
    theirs = tracker.client.create_experiment("theirs", artifact_location=str(tmp_path / "artifacts"))
    tracker.client.create_run(theirs)
    tracker.client.create_experiment("bucket", artifact_location="s3://bucket/artifacts")
    assert keep_artifacts_here(root / "mlflow.db", tmp_path / "link" / "artifacts") == []
    with sqlite3.connect(root / "mlflow.db") as connection:
        found = dict(connection.execute("SELECT name, artifact_location FROM experiments").fetchall())
    assert found["demo"] == str(root / "artifacts")
    assert (found["theirs"], found["bucket"]) == (str(tmp_path / "artifacts"), "s3://bucket/artifacts")

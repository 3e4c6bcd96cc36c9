"""A store to copy: making one takes a second or more."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.tracking import delivery
from experiments.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def _nothing_announced() -> Iterator[None]:
    """A process tells of an outage once; tests share one."""
    delivery._ANNOUNCED.clear()
    yield
    delivery._ANNOUNCED.clear()


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

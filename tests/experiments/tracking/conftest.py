"""A root with a store, and no memory of earlier outages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.tracking import client, delivery


@pytest.fixture(autouse=True)
def _nothing_announced() -> Iterator[None]:
    """A process tells of an outage once; tests share one."""
    delivery._ANNOUNCED.clear()
    yield
    delivery._ANNOUNCED.clear()


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a test lasts until the first sample of the system, whose metrics no test expects."""
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 3600.0)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store to copy to any place."""
    client.open_local(tmp_path / "template")
    return tmp_path / "template" / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose store is there already."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client.open_local(tmp_path / "mlruns")
    return tmp_path / "mlruns"

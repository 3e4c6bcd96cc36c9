"""System metrics."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments.tracking import delivery
from experiments.tracking.tracking import Tracker
from tests.experiments.tracking.stores import (
    read,
)


def test_system_metrics_are_sampled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 0.0)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        time.sleep(0.1)
    metrics = read(tracker, run).data.metrics
    assert 0.01 < metrics["system/process_memory_gb"] < metrics["system/memory_used_gb"]

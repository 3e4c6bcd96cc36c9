"""The time of arms is estimated; one that cannot be timed stops no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config

pytestmark = pytest.mark.slow


def test_an_arm_that_cannot_be_timed_stops_no_other(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def too_large(arm: Any) -> float:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("experiments.runs.estimate.step_seconds", too_large)
    monkeypatch.setattr("experiments.runs.estimate.TIMED", 1)
    assert not run_experiment(small_config(base), tmp_path, say=said.append).failed
    assert "the time cannot be estimated (OutOfMemoryError: tried to allocate 80 GiB)" in said

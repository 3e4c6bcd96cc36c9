"""A disk that is full where a run or a study writes stops it, loses nothing, and the same command continues.

This is a sample; `python -m tests.helpers.full_disk run study` does every place.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.helpers.full_disk import check, place


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "each"), [("run", 8), ("study", 12)])
def test_a_full_disk_at_a_place_of_a_run(kind: str, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    try:
        assert check(kind, tmp_path, each) == {}
    finally:
        gc.unfreeze()


def test_places_have_no_ids_and_no_steps() -> None:
    path = "/mlruns/runs/small-1a2b3c4d/arms/full-0.001/checkpoints/checkpoint-2/.meter.json.a1_b2c3d-host-12.part"
    assert place(path, Path("/mlruns")) == "runs/small-*/arms/full-*/checkpoints/checkpoint-*/.meter.json.part"

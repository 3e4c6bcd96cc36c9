"""A run on disk with planted forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.planted_run import ARMS, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "sums-1", ARMS)

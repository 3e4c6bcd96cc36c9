"""One whole run; tests copy what they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    """One whole run, in a folder with spaces and letters beyond ASCII; the tests below copy what they change."""
    root = tmp_path_factory.mktemp("whole") / "meine Läufe 数"
    run_experiment(small_config(base), root)
    return root

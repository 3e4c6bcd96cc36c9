"""A run and a study that are killed at random moments lose nothing and repeat nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_random_kills_lose_and_repeat_nothing() -> None:
    """Two of each here; `python -m tests.helpers.kills run study --kills 50` does many. It forks."""
    command = [sys.executable, "-m", "tests.helpers.kills", "run", "study", "--kills", "2", "--most", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("2 kills of") == 2

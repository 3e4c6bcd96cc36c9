"""A run and a study that are killed at random moments lose nothing and repeat nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_random_kills_lose_and_repeat_nothing() -> None:
    """50 of each; `python -m tests.helpers.kills run study --kills 500` does more. It forks."""
    command = [sys.executable, "-m", "tests.helpers.kills", "run", "study", "--kills", "50", "--seed", "41"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("50 kills of") == 2

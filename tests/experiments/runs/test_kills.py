"""A run and a study that are killed at random moments lose nothing and repeat nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_random_kills_lose_and_repeat_nothing() -> None:
    """Few here; `python -m tests.helpers.kills --runs 50 --studies 10` does many. It forks, so it needs a process."""
    command = [sys.executable, "-m", "tests.helpers.kills", "--runs", "1", "--studies", "1", "--kills", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("equal") == 2

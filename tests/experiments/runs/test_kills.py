"""A run and a study that are killed at random moments lose nothing and repeat nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_random_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """50 of each; `python -m tests.helpers.kills run study --kills 500` does more. It forks.

    Its output goes to a file: a process that outlives it would keep a pipe open, and this test would wait for its end.
    """
    command = [sys.executable, "-m", "tests.helpers.kills", "run", "study", "--kills", "50", "--seed", "41"]
    printed = tmp_path / "printed.txt"
    with printed.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            status = process.wait(timeout=800)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its children
            status = -1
    assert status == 0, printed.read_text()
    assert printed.read_text().count("50 kills of") == 2

"""`control-llm ui` as a process: its servers answer inside the block, and end with it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.cli.servers import is_taken

START = 120.0  # seconds


@contextlib.contextmanager
def served(root: Path, *options: str) -> Iterator[tuple[Any, str]]:
    """Yield the process of `ui` and what it has printed when all servers answer."""
    line = [sys.executable, "-u", "-m", "experiments.cli", "ui", "--no-browser", "--root", str(root), *options]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, deadline = "", time.monotonic() + START
    assert process.stdout is not None
    try:
        while "Ctrl-C ends" not in said:
            assert time.monotonic() < deadline, said
            line_read = process.stdout.readline()
            assert line_read, f"ui ended: {said}"
            said += line_read
        yield process, said
    finally:
        process.send_signal(signal.SIGINT)  # which ends the servers; after a kill they would stay
        process.wait(60)


def freed(port: int) -> bool:
    """Whether a port is free soon: the system ends a killed process a moment later."""
    return any(not is_taken(port) or time.sleep(0.1) for _ in range(50))

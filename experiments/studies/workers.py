"""Start the workers of a study, and end one whose parent is gone.

Such a worker would go on unseen, and the next start of the study would add its own workers to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.common.progress import PLAIN
from experiments.studies.storage import STORAGE

PARENT = "STUDY_PARENT"  # environment variable: the id of the process that started a worker
POLL = 1.0  # seconds between two looks at the parent


def worker_starter(config: Path, root: Path, storage: str, workers: int) -> Callable[[], Any]:
    """Return a function that starts one of several workers. storage: a URL, not on the command line, which all see."""
    command = [sys.executable, "-m", "experiments.cli", "study", str(config), "--worker", "--root", str(root)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), PLAIN: "1"} if workers > 1 else {}
    own = {STORAGE: storage, PARENT: str(os.getpid())}
    return lambda: subprocess.Popen(command, env=threads | os.environ | own)


@contextlib.contextmanager
def ends_with_parent() -> Iterator[None]:
    """Send this process SIGTERM when the one that started it is gone. No effect in a process that is no worker."""
    parent, ended = os.environ.get(PARENT), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            if os.getppid() != int(str(parent)):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if parent:
        threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        ended.set()

"""Work on all cores: in order, with errors, and without reading ahead."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.spread import cores, spread

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_are_in_order(workers: int | None) -> None:
    offset = 7  # functions need not be picklable
    assert list(spread(lambda n: (n + offset, n * n), range(20), workers)) == [(n + 7, n * n) for n in range(20)]
    assert list(spread(lambda n: n, [], workers)) == []


def test_other_processes_do_the_work() -> None:
    assert cores() >= 1
    assert os.getpid() not in set(spread(lambda n: os.getpid(), range(8), 2))
    assert set(spread(lambda n: os.getpid(), range(8), 1)) == {os.getpid()}


def test_a_worker_of_a_data_loader_does_the_work_itself() -> None:
    """It is a daemon, which may have no processes of its own: encoding there ended in an AssertionError."""
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    worker = context.Process(
        target=lambda: found.put(list(spread(lambda n: (n, os.getpid()), range(8), 2))), daemon=True
    )
    worker.start()
    assert found.get() == [(n, worker.pid) for n in range(8)]
    worker.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_after_the_results_before_it(workers: int) -> None:
    def check(n: int) -> int:
        if n >= 3:
            raise ConfigError(f"row {n}")
        return n

    found = []
    with pytest.raises(ConfigError, match=r"^row 3$"):
        found.extend(n for n in spread(check, range(50), workers))
    seen = spread(check, range(50), workers)
    assert [next(seen) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"^row 3$"):
        next(seen)


def test_few_chunks_are_read_ahead() -> None:
    read: list[int] = []

    def chunks() -> Iterator[int]:
        for n in range(1000):
            read.append(n)
            yield n

    results = spread(lambda n: n, chunks(), 2)
    assert next(results) == 0
    assert len(read) <= 6
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= 6


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        list(spread(lambda n: os._exit(1), range(3), 2))


KILLED = """
import fcntl, itertools, os, sys, time
from experiments.common.spread import spread

def work(_):
    time.sleep(0.01)
    return os.getpid()

lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
for pid in spread(work, itertools.count(), workers=2):
    print(pid, flush=True)
"""


def test_workers_of_a_killed_process_end_and_let_its_locks_go(tmp_path: Path) -> None:
    """They are copies of it, with all that it had open: the next start would wait for ever."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        process.kill()
    deadline = time.monotonic() + 20
    with (tmp_path / "lock").open("a") as lock:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)
    pytest.fail("the workers still hold the lock")

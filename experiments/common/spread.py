"""Call a function on many chunks of data with all cores of the machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
POLL = 1.0  # seconds between two looks at the parent
_function: Callable[[Any], Any] | None = None  # of a worker process


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(function: Callable[[In], Out], chunks: Iterable[In], workers: int | None = None) -> Iterator[Out]:
    """Yield function(chunk) for each chunk, in order. An error of the function is raised here.

    workers: processes, copies of this one (fork), so that only chunks and results must be picklable; by default one
    per core. With one core, or if this process may have no copies (a worker of a DataLoader), it is called here. Only a
    few chunks are read ahead: memory stays the same however many there are.
    """
    workers = cores() if workers is None else workers
    alone = multiprocessing.current_process().daemon or "fork" not in multiprocessing.get_all_start_methods()
    if workers < 2 or alone:
        yield from map(function, chunks)
        return
    waiting: deque[Future[Out]] = deque()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(function, os.getpid())) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_call, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _function  # noqa: PLW0603  # the function of this process, which need not be picklable
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the one that it is a copy of was killed: it would wait, and hold its locks, for ever."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def _call(chunk: Any) -> Any:
    assert _function is not None
    return _function(chunk)

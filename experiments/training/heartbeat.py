"""Signs of work of the processes of a launch, in a key-value store that all of them share.

A process that works for hours gives signs; one that died, hangs or waits for another process gives none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Heartbeat:
    """Post a sign at every interval in which the thread that makes this object has used CPU time.

    A thread that is blocked uses none: it waits for a lock, a socket or a disk. interval: in seconds.
    """

    def __init__(self, store: Any, index: int, interval: float) -> None:
        self._store, self._index, self._interval = store, index, interval
        self._cpu_seconds = _cpu_clock()
        self._signs, self._silent = 0, False
        self._lock, self._end = threading.Lock(), threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._end.set()

    @contextlib.contextmanager
    def silent(self, reason: str) -> Iterator[None]:
        """Post no sign inside the block, only the reason at its start."""
        with self._lock:
            self._silent = True
            self._post(reason)
        try:
            yield
        finally:
            self._silent = False

    def _run(self) -> None:
        used = -1.0
        with contextlib.suppress(Exception):  # the thread or the store is gone: no more signs
            while not self._end.wait(self._interval):
                before, used = used, self._cpu_seconds()
                with self._lock:
                    if used > before and not self._silent:
                        self._post("works")

    def _post(self, doing: str) -> None:
        self._signs += 1
        self._store.set(_key(self._index), f"{self._signs} {doing}")


def last_sign(store: Any, index: int) -> str:
    """The latest sign of a process: its number and what the process does. Empty before the first."""
    key = _key(index)
    return store.get(key).decode() if store.check([key]) else ""


def _key(index: int) -> str:
    return f"sign/{index}"


def _cpu_clock() -> Callable[[], float]:
    """A function for the CPU seconds that the present thread has used; other threads can call it."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.process_time  # of all threads: without Linux a blocked thread is not noticed
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)

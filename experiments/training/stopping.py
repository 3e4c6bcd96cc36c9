"""Stop between two steps: after Ctrl-C or SIGTERM the step ends and a checkpoint is saved, before the process stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A signal that came during training. True once there is one."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, Any], Any]] = {}
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal: the first one is noted, the second one acts at once."""
        if self.number is not None:
            self.handlers[number](number, frame)
        self.number = number
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, b"stopping after this step, with a checkpoint; once more stops at once\n")

    def act(self) -> None:
        """Do what the signal would have done: KeyboardInterrupt, or SystemExit. Nothing if there was none."""
        if self.number is not None:
            self.handlers[self.number](self.number, None)


@contextlib.contextmanager
def stops_after_step(processes: int = 1) -> Iterator[StopRequest]:
    """Note signals inside the block instead of raising them; `Checkpoint` acts on them. At the end what is left acts.

    Only the main thread can do so. With several processes a signal acts at once: each would stop at a step of its own.
    """
    asked = StopRequest()
    if processes > 1 or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    for number in SIGNALS:
        before = signal.getsignal(number)
        if callable(before):  # not if it is ignored, or ends the process without an exception
            asked.handlers[number] = before
            signal.signal(number, asked.note)
    try:
        yield asked
    finally:
        for number, before in asked.handlers.items():
            signal.signal(number, before)
    asked.act()

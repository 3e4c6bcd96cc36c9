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
    """The signals that came during training. True once there is one."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, Any], Any]] = {}
        self.numbers: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal: it is noted, and the same once more acts at once.

        Ctrl-C in the shell of a study reaches a worker twice: as SIGINT, then as SIGTERM from its parent.
        """
        if number in self.numbers:
            self.handlers[number](number, frame)
        if not self.numbers:
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, b"stopping after this step, with a checkpoint; once more stops at once\n")
        self.numbers.append(number)

    def act(self) -> None:
        """Do what the first signal would have done: KeyboardInterrupt, or SystemExit. Nothing if there was none."""
        if self.numbers:
            self.handlers[self.numbers[0]](self.numbers[0], None)


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
        for caught, before in asked.handlers.items():
            signal.signal(caught, before)
    asked.act()

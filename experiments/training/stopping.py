"""Stop between two steps: after Ctrl-C or SIGTERM the step ends and a checkpoint is saved, before the process stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 10.0  # seconds


class StopRequest:
    """The signals that came during training. True once there is one."""

    def __init__(self, echo: float = 0.0) -> None:
        """echo: seconds in which the same signal counts once: a launcher and a scheduler may both pass it on."""
        self.handlers: dict[int, Callable[[int, Any], Any]] = {}
        self.numbers: list[int] = []
        self.echo, self.since = echo, 0.0

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal: it is noted, and the same once more acts at once.

        Ctrl-C in the shell of a study reaches a worker twice: as SIGINT, then as SIGTERM from its parent.
        """
        if number in self.numbers and time.monotonic() - self.since >= self.echo:
            self.handlers[number](number, frame)
        if not self.numbers:
            self.since = time.monotonic()
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, b"stopping after this step, with a checkpoint; once more stops at once\n")
        self.numbers.append(number)

    def act(self) -> None:
        """Do what the first signal would have done: KeyboardInterrupt, or SystemExit. Nothing if there was none."""
        if self.numbers:
            number = self.numbers[0]
            handler = self.handlers.get(number)
            if handler is None:  # another process of the launch got it
                raise SystemExit(128 + number)
            handler(number, None)


@contextlib.contextmanager
def stops_after_step(processes: int = 1) -> Iterator[StopRequest]:
    """Note signals inside the block instead of raising them; `Checkpoint` acts on them. At the end what is left acts.

    Only the main thread can do so. processes: of the launch, which stop after the same step (`Processes.stops`).
    """
    asked = StopRequest(ECHO if processes > 1 else 0.0)
    if threading.current_thread() is not threading.main_thread():
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

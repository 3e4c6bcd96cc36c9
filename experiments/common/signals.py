"""End a block at a signal by an exception, also if Python swallows the first one.

An exception of a signal's handler is lost if the handler ran inside of a callback, such as those of the garbage
collector: Python prints "Exception ignored in", and the block goes on. Then the signal is sent once more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_SECONDS = 0.05  # after which the callback has ended


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise SystemExit (143 at SIGTERM, 129 at SIGHUP, a closed terminal) inside the block, so that runs are closed.

    Only the main thread can do so. A signal that is ignored, as SIGHUP under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _exit)
    try:
        with swallowed_ones_come_again():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def swallowed_ones_come_again() -> Iterator[None]:
    """Send a signal, Ctrl-C included, again if Python has swallowed the exception that it raised in the block."""
    before = sys.unraisablehook

    def hook(swallowed: Any) -> None:
        number = _number(swallowed.exc_value)
        if number is None:
            before(swallowed)
        else:
            threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, number)).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _exit(number: int, frame: Any) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(2, f"stopped by {signal.Signals(number).name}; the same command continues\n".encode())
    sys.exit(128 + number)


def _number(error: BaseException | None) -> int | None:
    """Return the signal whose handler raised an exception."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    codes = {128 + number: number for number in ENDING}
    return codes.get(error.code) if isinstance(error, SystemExit) and isinstance(error.code, int) else None

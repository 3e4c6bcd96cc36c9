"""A signal ends its block by an exception, also if Python swallows the first one."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from experiments.common.signals import ENDING, sigterm_raises, swallowed_ones_come_again


@pytest.mark.parametrize("number", ENDING)
def test_signals_that_end_a_process_let_it_close_its_runs(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup one of them is ignored
    try:
        with pytest.raises(SystemExit, match=str(128 + number)), sigterm_raises():
            os.kill(os.getpid(), number)
        assert capfd.readouterr().err == f"stopped by {number.name}; the same command continues\n"
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with sigterm_raises():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Stops:
    """Gets a signal inside of a callback of the garbage collector, which swallows exceptions."""

    def __init__(self, number: int) -> None:
        self.number, self.own = number, self

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        time.sleep(0)  # a place at which Python runs the handler


def waited(number: int) -> None:
    Stops(number)
    gc.collect()
    until = time.monotonic() + 10
    while time.monotonic() < until:  # as training, whose steps are many short calls
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("block", "number", "raised"),
    [
        (sigterm_raises, signal.SIGTERM, SystemExit),
        (sigterm_raises, signal.SIGINT, KeyboardInterrupt),
        (swallowed_ones_come_again, signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_a_signal_that_python_swallows_ends_the_block_all_the_same(
    block: Callable[[], Any], number: int, raised: type[BaseException]
) -> None:
    """It said "stopped by SIGTERM", trained to its end and exited with 0."""
    handler, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    try:
        with pytest.raises(raised), block():
            waited(number)
        assert sys.unraisablehook is hook
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_exceptions_that_python_swallows_are_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ValueError("of a callback")

    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda swallowed: shown.append(str(swallowed.exc_value)))
    with swallowed_ones_come_again():
        Fails()
        gc.collect()
    assert shown == ["of a callback"]

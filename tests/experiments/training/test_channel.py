"""The channel between processes: what it passes, how long it waits, and what it says. Threads play the processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from experiments.training.channel import FAILED, AbortLaunch, Channel, CollectiveTimeout
from experiments.training.processes import MainProcessError, Processes

TIMEOUT = timedelta(seconds=1)


def processes(*work: Callable[[Channel], Any]) -> list[Any]:
    """Run one function per process, at the same time; return what each returns or raises."""
    store = dist.HashStore()

    def run(index: int) -> Any:
        channel = Channel(store, index, len(work), TIMEOUT)
        try:
            return work[index](channel)
        except Exception as error:
            return error
        finally:
            channel.close()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, range(len(work))))


def test_values_are_passed_in_the_order_of_the_calls() -> None:
    def work(channel: Channel) -> list[Any]:
        first = channel.broadcast("letter", "a" if channel.index == 0 else None)
        return [first, channel.all_gather("index", channel.index), channel.broadcast("letter", "b")]

    assert processes(work, work, work) == [["a", [0, 1, 2], "b"]] * 3


def test_process_0_leaves_last() -> None:
    """It may hold the store, which the others still read."""
    read = []

    def slow(channel: Channel) -> None:
        whole = channel._await

        def after_a_while(*args: Any) -> Any:
            time.sleep(0.05)
            read.append(whole(*args))

        channel._await = after_a_while  # type: ignore[method-assign]
        channel.leave()

    def main(channel: Channel) -> int:
        channel.leave()
        return len(read)

    assert processes(main, slow) == [2, None]


def test_a_message_is_received_by_its_name() -> None:
    def main(channel: Channel) -> None:
        channel.send("train", 3)
        channel.send("done", None)

    def other(channel: Channel) -> list[Any]:
        return [channel.receive("train", "done"), channel.receive("train", "done")]

    assert processes(main, other) == [None, [3, None]]


def test_a_call_that_one_side_alone_makes_is_named_at_once() -> None:
    """The other process does not wait for the timeout."""
    start = time.monotonic()
    _, error = processes(
        lambda channel: channel.broadcast("extra", 1), lambda channel: channel.receive("TrainArm", "Done")
    )
    assert isinstance(error, AbortLaunch)
    assert not isinstance(error, CollectiveTimeout)
    assert "process 1 expects 'TrainArm' or 'Done' from process 0, which is at 'extra'" in str(error)
    assert time.monotonic() - start < TIMEOUT.total_seconds()


def test_a_process_that_hangs_is_given_up() -> None:
    over = threading.Event()

    def hanging(channel: Channel) -> None:
        over.wait(30)

    def waiting(channel: Channel) -> Any:
        try:
            return channel.broadcast("evaluation at step 4", None)
        finally:
            over.set()

    start = time.monotonic()
    _, error = processes(hanging, waiting)
    assert isinstance(error, CollectiveTimeout)
    assert "process 1 waits for 'evaluation at step 4' from process 0, which has shown no sign of work for 0:00:01" in (
        str(error)
    )
    assert time.monotonic() - start < 10


def test_a_process_that_works_is_waited_for() -> None:
    """Three times as long as the timeout, most of it in naps."""

    def slow(channel: Channel) -> None:
        end = time.monotonic() + 3 * TIMEOUT.total_seconds()
        while time.monotonic() < end:
            time.sleep(0.02)
        channel.broadcast("evaluation at step 4", "records")

    assert processes(slow, lambda channel: channel.broadcast("evaluation at step 4", None)) == [None, "records"]


def test_a_process_that_waits_for_another_gives_no_sign_of_work() -> None:
    """Process 1 hangs, so 0 waits for it, and 2, which waits for 0, gives up too and says what 0 does."""
    over = threading.Event()

    def main(channel: Channel) -> Any:
        channel.all_gather("peak memory", 1)
        channel.send("done", None)

    def hanging(channel: Channel) -> None:
        over.wait(30)

    def other(channel: Channel) -> Any:
        channel._calls = 1  # has made the first call without waiting
        try:
            return channel.receive("done")
        finally:
            over.set()

    first, _, last = processes(main, hanging, other)
    assert "process 0 waits for 'peak memory' from process 1" in str(first)
    assert "process 2 waits for 'done' from process 0" in str(last)
    assert "Its last sign: it waits for 'peak memory' from process 1" in str(last)


def test_a_failure_is_passed_on() -> None:
    _, error = processes(
        lambda channel: channel.send(FAILED, "OSError: no space left"), lambda channel: channel.receive("done")
    )
    assert isinstance(error, AbortLaunch)
    assert str(error) == "process 0 failed: OSError: no space left"


def test_a_store_that_goes_away_ends_the_launch() -> None:
    class Gone:
        def set(self, key: str, value: Any) -> None:
            pass

        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("connection reset by peer")

    channel = Channel(Gone(), 1, 2, TIMEOUT)
    with pytest.raises(AbortLaunch, match="process 1 lost the connection to the others at 'done': connection reset"):
        channel.receive("done")
    channel.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(MemoryError(), AbortLaunch), (ConnectionError("gone"), AbortLaunch), (ValueError("x"), MainProcessError)],
)
def test_a_fault_of_the_machine_in_one_process_fails_no_arm(fault: Exception, kind: type[Exception]) -> None:
    """Its text does not say its class: `MemoryError` has none at all."""

    def measuring(channel: Channel, fault: Exception | None) -> None:
        with Processes(2, channel.index, channel).sharing(torch.nn.Linear(1, 1), "evaluation"):
            if fault:
                raise fault

    found = processes(lambda channel: measuring(channel, None), lambda channel: measuring(channel, fault))
    assert [type(error) for error in found] == [kind, kind]
    assert all(type(fault).__name__ in str(error) for error in found)

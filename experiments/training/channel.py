"""Pass objects between the processes of a launch. A wait lasts as long as the awaited process shows signs of work.

Every process numbers its calls and names each of them. The calls of all processes must be the same in the same order:
a call that only one side makes is an error that names both calls, not an endless wait.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from experiments.training.heartbeat import Heartbeat, last_sign

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # without any sign of work from the awaited process
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25  # seconds between two looks at the store
END = "the end of the run"
FAILED = "failure"  # name of the call with which a process says that it cannot go on


class AbortLaunch(RuntimeError):
    """An error that the other processes cannot know of, so the whole launch has to end."""


class CollectiveTimeout(AbortLaunch):
    """The awaited process shows no sign of work: it died, it hangs, or it waits for another process."""


class Channel:
    """Broadcast, gather and send objects over a key-value store (`torch.distributed.Store`).

    store: shared by all processes and new for each channel. index: this process, from 0 to count - 1. timeout: how long
    a process is awaited that shows no sign of work (see `Heartbeat`). Methods raise CollectiveTimeout, and AbortLaunch
    if the awaited process failed, made another call, or took the store away.
    """

    def __init__(self, store: Any, index: int, count: int, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
        self.index, self.count, self.timeout = index, count, timeout
        self._store, self._calls = store, 0
        self._heartbeat = Heartbeat(store, index, timeout.total_seconds() / 10)

    def close(self) -> None:
        """End the heartbeat."""
        self._heartbeat.stop()

    def broadcast(self, name: str, value: Any) -> Any:
        """Return the value of process 0, which does not wait for the others."""
        if self.index > 0:
            return self.receive(name)
        self.send(name, value)
        return value

    def all_gather(self, name: str, value: Any) -> list[Any]:
        """Return the values of all processes in their order."""
        self.send(name, value)
        return [self._await(self._calls, (name,), index) for index in range(self.count)]

    def leave(self) -> None:
        """Wait until all processes are here. Process 0, which may hold the store, leaves last."""
        self.all_gather(END, None)
        left = [f"{self._calls}/{index} left" for index in range(self.count)]
        with self._store_errors(END):
            if self.index > 0:
                self._store.set(left[self.index], b"")
            else:
                for index in range(1, self.count):
                    self._wait(left[index], repr(END), index)

    def send(self, name: str, value: Any) -> None:
        """Post a value for the receivers of the call with this number; does not wait for them."""
        self._calls += 1
        with self._store_errors(name):
            self._store.set(f"{self._calls}/{self.index}", pickle.dumps((name, value)))

    def receive(self, *names: str) -> Any:
        """Return what process 0 sends next, which must have one of these names."""
        self._calls += 1
        return self._await(self._calls, names, 0)

    def agreed(self, name: str, value: Any) -> Any:
        """Return the value that the first process gave under a name, None if there is none; waits for nobody.

        It is no numbered call: the processes may make it at different times.
        """
        with self._store_errors(name):
            if value is not None and not self._store.check([name]):
                self._store.set(name, pickle.dumps(value))
            return pickle.loads(self._store.get(name)) if self._store.check([name]) else None

    def _await(self, number: int, names: tuple[str, ...], index: int) -> Any:
        wanted, key = " or ".join(map(repr, names)), f"{number}/{index}"
        with self._store_errors(wanted):
            self._wait(key, wanted, index)
            name, value = pickle.loads(self._store.get(key))
        if name == FAILED:
            raise AbortLaunch(f"process {index} failed: {value}")
        if name not in names:
            raise AbortLaunch(
                f"process {self.index} expects {wanted} from process {index}, which is at {name!r}: all processes of a "
                "launch must run the same code with the same arguments"
            )
        return value

    def _wait(self, key: str, wanted: str, index: int) -> None:
        sign, since, pause = "", time.monotonic(), FIRST_PAUSE
        with self._heartbeat.silent(f"waits for {wanted} from process {index}"):
            while not self._store.check([key]):
                before, sign = sign, last_sign(self._store, index)
                since = since if sign == before else time.monotonic()
                if time.monotonic() - since > self.timeout.total_seconds():
                    raise CollectiveTimeout(
                        f"process {self.index} waits for {wanted} from process {index}, which has shown no sign of "
                        f"work for {self.timeout}: it is dead or hangs. "
                        + (f"Its last sign: it {sign.partition(' ')[2]}" if sign else "It has shown none so far")
                    )
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    @contextlib.contextmanager
    def _store_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise AbortLaunch(f"process {self.index} lost the connection to the others at {name}: {error}") from error

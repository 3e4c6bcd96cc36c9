"""Deliver journals to the store from a thread, so that a slow or dead store never delays training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from experiments.tracking.journal import Journal
from experiments.tracking.senders import deliver
from experiments.tracking.store import TrackingStore, last_line

FLUSH_SECONDS, RETRY_SECONDS = 1.0, 10.0  # between deliveries; after one that failed
SAMPLE_SECONDS = 10.0  # between system metrics

_ANNOUNCED: set[str] = set()  # URIs of stores whose outage this process has warned about


class Delivery:
    """Deliver the added journals about once a second, in the order in which they were added.

    faults: failed deliveries so far. message: why the latest one failed; empty while the store answers. announced:
    whether the user has been warned about this outage, by any delivery of the process. sample: called every
    SAMPLE_SECONDS, for system metrics.
    """

    def __init__(self, store: TrackingStore, sample: Callable[[], None]) -> None:
        self.store, self.sample = store, sample
        self.faults, self.message = 0, ""
        self._journals: list[Journal] = []
        self._sent: dict[str, int] = {}  # journal id -> bytes that arrived
        self._ended: set[str] = set()
        self._reported = 0  # refused lines that `refused` has returned
        self._retry = self._sample_at = 0.0
        self._wake = threading.Event()
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def announced(self) -> bool:
        return self.store.uri in _ANNOUNCED

    @announced.setter
    def announced(self, value: bool) -> None:
        (_ANNOUNCED.add if value else _ANNOUNCED.discard)(self.store.uri)

    def add(self, journal: Journal) -> None:
        with self._turn:
            self._journals.append(journal)
            self._ended.discard(journal.id)
            self._sample_at = self._sample_at or time.monotonic() + SAMPLE_SECONDS
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
            self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Wait until everything written so far has arrived. False after `seconds`, or after a failed delivery.

        Does not wait for a store that failed less than RETRY_SECONDS ago.
        """
        deadline = time.monotonic() + seconds
        with self._turn:
            faults = self.faults
            sizes = {journal.id: journal.size for journal in self._journals}
            while any(self._sent.get(name, 0) < size for name, size in sizes.items()):
                left = deadline - time.monotonic()
                if left <= 0 or self.faults > faults or time.monotonic() < self._retry:
                    return False
                self._wake.set()
                self._turn.wait(min(left, 0.5))
        return True

    def ended(self, journal: Journal) -> None:
        """Mark a journal as complete: it is dropped when all of it has arrived."""
        with self._turn:
            self._ended.add(journal.id)
        self._wake.set()

    def refused(self) -> list[str]:
        """Return the messages of lines that the store has refused since the last call."""
        lost = self.store.refused[self._reported :]
        self._reported += len(lost)
        return lost

    @property
    def waiting(self) -> list[Journal]:
        """Journals with lines that have not arrived."""
        with self._turn:
            return [j for j in self._journals if self._sent.get(j.id, 0) < j.size]

    def failed(self, message: str) -> None:
        """Count a failed delivery, and try none for RETRY_SECONDS."""
        with self._turn:
            self.faults, self.message = self.faults + 1, message
            self._retry = time.monotonic() + RETRY_SECONDS
            self._turn.notify_all()

    def _run(self) -> None:
        while True:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            with self._turn:
                done = {j.id for j in self._journals if j.id in self._ended and self._sent.get(j.id, 0) >= j.size}
                self._journals = [j for j in self._journals if j.id not in done]
                if not self._journals:
                    self._thread = None
                    return
                todo = list(self._journals)
            if time.monotonic() >= self._sample_at:
                self._sample_at = time.monotonic() + SAMPLE_SECONDS
                self.sample()
            if time.monotonic() >= self._retry:
                self._deliver(todo)

    def _deliver(self, todo: list[Journal]) -> None:
        for journal in todo:
            if self._sent.get(journal.id, 0) >= journal.size:
                continue
            try:
                self._sent[journal.id] = deliver(self.store, journal).offset
                message = ""
            except Exception as error:
                message = last_line(error)
            if message:
                self.failed(message)
                return  # children wait for their parents
            with self._turn:
                self.message, self.announced = "", False
                self._turn.notify_all()

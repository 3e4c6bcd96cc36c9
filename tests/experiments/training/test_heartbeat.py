"""Signs of work: a thread that computes gives them, one that is blocked does not."""

from __future__ import annotations

import time

import torch.distributed as dist

from experiments.training.heartbeat import Heartbeat, last_sign

INTERVAL = 0.02


def busy(seconds: float) -> None:
    """Compute for this CPU time of the thread: on a busy machine it takes longer."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def count(store: dist.Store) -> int:
    return int(last_sign(store, 0).split()[0])


def test_signs_follow_the_cpu_time_of_the_thread() -> None:
    store = dist.HashStore()
    assert last_sign(store, 0) == ""
    heartbeat = Heartbeat(store, 0, INTERVAL)
    busy(0.2)
    working = count(store)
    assert working > 2
    assert last_sign(store, 0).endswith(" works")
    time.sleep(0.3)  # blocked: at most the interval that had begun still counts
    assert count(store) <= working + 2
    busy(0.2)
    assert count(store) > working + 2
    heartbeat.stop()
    time.sleep(2 * INTERVAL)
    ended = count(store)
    busy(0.2)
    assert count(store) == ended


def test_no_sign_of_work_while_another_process_is_awaited() -> None:
    store = dist.HashStore()
    heartbeat = Heartbeat(store, 0, INTERVAL)
    with heartbeat.silent("waits for 'done' from process 1"):
        before = count(store)
        busy(0.2)
        assert count(store) == before
        assert last_sign(store, 0) == f"{before} waits for 'done' from process 1"
    busy(0.2)
    assert count(store) > before
    heartbeat.stop()

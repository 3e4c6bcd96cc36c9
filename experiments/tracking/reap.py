"""Clean up after dead processes: deliver the rest of their journals, end runs that a store still shows as running."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.common.files import sweep
from experiments.tracking.journal import PATTERN, Journal, in_order
from experiments.tracking.machine import process_alive
from experiments.tracking.moved import ARTIFACTS
from experiments.tracking.senders import deliver
from experiments.tracking.store import DIED, TrackingStore


def reap(store: TrackingStore, root: Path, seconds: float) -> list[str]:
    """End the runs of dead processes in the store; return the ids of those marked as KILLED.

    A journal below root counts more than the store. It is delivered, so that a run which ended while the store was
    offline gets its end; one without an end is first ended as KILLED. A run without a journal here is killed in the
    store only. A journal that only another store has seen is left to `sync`. After `seconds` no further journal is
    begun; the next start goes on. Raises errors of MLflow.
    """
    deadline = time.monotonic() + seconds
    known = {journal.id: journal for journal in _journals(root)}
    dead = store.dead_runs()
    left = [journal for journal in known.values() if journal.id in dead.values() or journal.missing_in(store.uri)]
    killed = []
    for journal in in_order(left):
        if time.monotonic() > deadline:
            break
        died = end_dead(journal)
        if not died and may_live(journal):
            continue
        try:
            run_id = deliver(store, journal).run_id
        except LookupError:  # its parent is in no journal here
            continue
        killed += [run_id] if died and run_id not in killed else []  # parts of a run have its id
    for run_id, journal_id in dead.items():
        if journal_id not in known:
            store.kill(run_id)
            killed.append(run_id)
    return killed


def end_dead(journal: Journal) -> bool:
    """Write the end of a run whose process died. Returns whether the run was such a one."""
    if journal.ended() or may_live(journal):
        return False
    if not journal.joins:  # the run above says so itself, unless it has gone on since
        journal.append("tags", tags={"error": DIED})
    journal.append("end", status="KILLED")
    journal.close()
    return True


def may_live(journal: Journal) -> bool:
    """Whether the process of a run's latest attempt may still work, here or on another machine."""
    start = journal.last("start")
    return start is None or process_alive(start["tags"])


def sweep_root(root: Path) -> None:
    """Delete temporary files of dead processes everywhere below a root: in runs, studies and the cache."""
    for place in _places(root):
        sweep(place)


def _journals(root: Path) -> list[Journal]:
    return [Journal(path) for place in _places(root) for path in place.rglob(PATTERN)]


def _places(root: Path) -> list[Path]:
    # artifacts: many files, and no journal among them
    return [place for place in root.iterdir() if place.is_dir() and place.name != ARTIFACTS]

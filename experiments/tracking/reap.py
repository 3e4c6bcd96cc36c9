"""What dead processes have left: journals that no store has whole, runs that a store still shows as running."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.tracking.journal import PATTERN, Journal, in_order
from experiments.tracking.machine import process_alive
from experiments.tracking.senders import deliver
from experiments.tracking.store import DIED, Store

ARTIFACTS = "artifacts"  # of the local store: many files, and no journal among them


def reap(store: Store, root: Path, seconds: float) -> list[str]:
    """Make the store tell the truth about runs whose process is gone. Returns the ids of those that it killed.

    A journal below root is believed before the store: it is delivered, so that a run which came to its end while the
    store was away gets that end, and ended as KILLED first where it has none. A run without a journal here is killed
    in the store alone. A journal that only another store has seen is left to `sync`. After `seconds` no further one is
    begun; the next start goes on. Raises what MLflow raises.
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
        killed += [run_id] if died else []
    for run_id, journal_id in dead.items():
        if journal_id not in known:
            store.kill(run_id)
            killed.append(run_id)
    return killed


def end_dead(journal: Journal) -> bool:
    """Write the end of a run that died without one. Returns whether this was such a run."""
    if journal.ended() or may_live(journal):
        return False
    journal.append("tags", tags={"error": DIED})
    journal.append("end", status="KILLED")
    journal.close()
    return True


def may_live(journal: Journal) -> bool:
    """Whether the process of a run's latest attempt may still be at work, here or on another machine."""
    start = journal.last("start")
    return start is None or process_alive(start["tags"])


def _journals(root: Path) -> list[Journal]:
    places = [place for place in root.iterdir() if place.is_dir() and place.name != ARTIFACTS]
    return [Journal(path) for place in places for path in place.rglob(PATTERN)]

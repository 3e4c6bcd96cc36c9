"""Share the base model's results with other machines: they are artifacts of the runs that measured them.

A machine without a common disk finds them by their name in the cache, a digest of all that they depend on. The cache
checks what is downloaded as it checks its own files; what is missing or damaged is measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.tracking.elsewhere import SharedStore
from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker

FOLDER = "base_cache"  # of the artifacts; each entry has a tag too, by which it is found
TAG = f"{FOLDER}_"  # and the entry's name


class SharedBase:
    """The entries of the cache in the store of a tracker. run: sends what this machine measures."""

    def __init__(self, tracker: Tracker, run: Run) -> None:
        self._run, self._tracker, self._store = run, tracker, SharedStore(tracker.store)

    def copies(self, name: str, files: Sequence[str], folder: Path) -> Iterator[Path]:
        """Yield folders with these files of an entry, each from another run that measured it."""
        away = bool(self._tracker.delivery.message)
        for run in [] if away else self._store.runs(**{TAG + name: name}):
            to = folder / run.info.run_id / name
            to.mkdir(parents=True)
            if all(self._store.fetch(run.info.run_id, f"{FOLDER}/{name}/{file}", to / file) for file in files):
                yield to

    def send(self, place: Path, files: Sequence[str]) -> None:
        """Send an entry of the cache. The tag comes last: who sees it finds the files."""
        if self._store.is_shared:
            for file in files:
                self._run.log_text((place / file).read_text(encoding="utf-8"), f"{FOLDER}/{place.name}/{file}")
            self._run.set_tags({TAG + place.name: place.name})

"""Find in a store what runs on other machines have sent to it, and download single files.

Nothing here raises because of the store: what it does not have, or not now, is made again by those who ask.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from experiments.tracking.store import TrackingStore

MOST = 20  # runs that are looked at: attempts to do the same
PLAIN = re.compile(r"[\w.-]+")  # names that can be in a filter


class SharedStore:
    """The store at MLFLOW_TRACKING_URI, which other machines use too. Without it, there is nothing to find."""

    def __init__(self, store: TrackingStore) -> None:
        self._store, self._away = store, False

    @classmethod
    def of(cls, root: Path) -> SharedStore:
        """Return the store that runs below a root use."""
        return cls(TrackingStore(Path(root).resolve(), os.environ.get("MLFLOW_TRACKING_URI")))

    @property
    def is_shared(self) -> bool:
        return not self._store.local

    def runs(self, **tags: str) -> list[Any]:
        """Return runs whose tags end with these texts, the latest first.

        A text has letters, digits, `_`, `-` and `.` only. A store that failed once is not asked again.
        """
        if not self.is_shared or self._away or not all(PLAIN.fullmatch(text) for text in tags.values()):
            return []
        wanted = " AND ".join(f"tags.{name} LIKE '%{text}'" for name, text in tags.items())
        try:
            client = self._store.client
            experiments = [one.experiment_id for one in client.search_experiments()]
            return list(client.search_runs(experiments, wanted, max_results=MOST))
        except Exception:  # of MLflow, of the network, of a database
            self._away = True
            return []

    def fetch(self, run_id: str, name: str, to: Path) -> bool:
        """Download the artifact `name`, a file, to the path `to`, whose folder exists; return whether that worked."""
        try:
            found = Path(self._store.client.download_artifacts(run_id, name, str(to.parent)))
            found.replace(to)
        except Exception:
            return False
        return True

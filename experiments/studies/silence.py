"""Tell whether the heartbeat of a trial on another machine has stopped.

A heartbeat is a time in the database. With SQLite it is the clock of the machine that wrote it, and any clock can be
set while trials run. So an old heartbeat alone does not say that a worker is dead: it must also have stayed the same
while this process watched it, by a clock that cannot be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import optuna
import sqlalchemy

BEATS = "SELECT trial_id, heartbeat FROM trial_heartbeats"


class Silence:
    """Watch the heartbeats of a study. clock: seconds, which never go back."""

    def __init__(
        self, storage: optuna.storages.RDBStorage, study_id: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.storage, self.study_id, self.clock = storage, study_id, clock
        self._seen: dict[int, tuple[Any, float]] = {}  # trial -> its heartbeat, and when it was first seen

    def old(self) -> set[int]:
        """Return the trials whose heartbeat is older than the grace period, by the database's clock."""
        return set(self.storage._get_stale_trial_ids(self.study_id))

    def confirmed(self, trials: Collection[int]) -> set[int]:
        """Return those of some trials with old heartbeats that were also seen to stand still for a grace period.

        A trial is watched from the first call that names it.
        """
        now, beats = self.clock(), self._beats() if trials else {}
        for trial in self._seen.keys() - set(trials):
            del self._seen[trial]
        for trial in trials:
            if trial not in self._seen or self._seen[trial][0] != beats.get(trial):
                self._seen[trial] = beats.get(trial), now
        return {trial for trial, (_, since) in self._seen.items() if now - since > (self.storage.grace_period or 0)}

    def _beats(self) -> dict[int, Any]:
        with self.storage.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(sqlalchemy.text(BEATS))}

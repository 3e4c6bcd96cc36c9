"""Keep the artifacts of a local store in its own root, also after the root was copied or moved.

MLflow writes absolute paths into its database. Those of a copy name the root that it was copied from: new artifacts
would be written there, and those of that root would be read as if they were the copy's.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from pathlib import Path

ARTIFACTS = "artifacts"  # folder in the root
# of experiments that the bench made: all of its runs have a journal
OURS = """SELECT DISTINCT artifact_location FROM experiments e
WHERE artifact_location LIKE '/%/artifacts' AND artifact_location != ? AND (
    EXISTS (SELECT 1 FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid
            WHERE r.experiment_id = e.experiment_id AND t.key = 'journal_id')
    OR NOT EXISTS (SELECT 1 FROM runs r WHERE r.experiment_id = e.experiment_id))"""
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
SECONDS = 60.0  # to wait for other writers


def keep_artifacts_here(database: Path, artifacts: Path) -> list[str]:
    """Let the experiments, runs and models of a database have their artifacts in a folder. Returns where they were.

    A place that is the same folder by another path stays as it is. Warns once. Raises sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
        found = [str(row[0]) for row in connection.execute(OURS, (str(artifacts),))]
        moved = [old for old in found if not _same(Path(old), artifacts)]
        for old in moved:
            for table, column in PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, :size + 1) "
                    f"WHERE {column} = :old OR substr({column}, 1, :size + 1) = :old || '/'",
                    {"new": str(artifacts), "old": old, "size": len(old)},
                )
    for old in moved:
        warnings.warn(
            f"{database} was copied or moved: its artifacts were in {old}, and are now in {artifacts}. Those of "
            "earlier runs are shown if they were copied there too",
            stacklevel=2,
        )
    return moved


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)

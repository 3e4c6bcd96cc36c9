"""Find experiments and runs in a tracking store: a local SQLite file, a database or a tracking server."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.common.errors import TrackingError
from experiments.common.machine_faults import of_the_machine
from experiments.common.printable import printable
from experiments.tracking.client import DATABASES, away, connect, open_local, pages, refused
from experiments.tracking.machine import process_alive
from experiments.tracking.moved import ARTIFACTS
from experiments.tracking.uri import passwords_of, without_password

DIED = "its process died"  # the tag `error` of a run that has no end of its own


class TrackingStore:
    """A tracking store, opened on first use. uri: as in MLFLOW_TRACKING_URI. root: folder of the local store.

    refused: messages of lines that the store will never accept (a file that is gone, a value that is not allowed); such
    lines are skipped. Methods raise errors of MLflow while the store is offline.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root, self.local = Path(root), uri is None
        self.uri = uri or f"sqlite:///{self.root / 'mlflow.db'}"
        self.refused: list[str] = []
        self._client: Any = None
        self._experiments: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = open_local(self.root) if self.local else connect(self.uri)
            return self._client

    @property
    def shown(self) -> str:
        """The URI without a password, for messages."""
        return without_password(self.uri)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if missing, restore it if deleted."""
        with self._lock:
            if name not in self._experiments:
                _ = self.client  # opening takes the same lock
                with FileLock(self.root / "mlflow.db.lock") if self.local else contextlib.nullcontext():
                    self._experiments[name] = self._find_experiment(name)
            return self._experiments[name]

    def restore(self, name: str) -> bool:
        """Bring a deleted experiment back, with all of its runs. Returns whether it was deleted."""
        found = self.client.get_experiment_by_name(name)
        deleted = found is not None and found.lifecycle_stage == "deleted"
        if deleted:
            self.client.restore_experiment(found.experiment_id)
        return bool(deleted)

    def dead_runs(self) -> dict[str, str]:
        """Return the runs that are RUNNING in the store but whose process is dead: run id -> journal id."""
        wanted = "attributes.status = 'RUNNING'"
        ids = self._experiment_ids()
        running = pages(lambda token: self.client.search_runs(ids, wanted, page_token=token))
        return {r.info.run_id: r.data.tags.get("journal_id", "") for r in running if not process_alive(r.data.tags)}

    def kill(self, run_id: str) -> None:
        """Mark a run as KILLED; an end that its journal brings later replaces this."""
        if "error" not in self.client.get_run(run_id).data.tags:
            self.client.set_tag(run_id, "error", DIED)
        self.client.set_terminated(run_id, "KILLED")

    def find_run(self, run_id: str) -> str:
        """Return the store's id of an active run, given that id or its journal's id; empty without one."""
        try:
            found = self.client.get_run(run_id)
            if found.info.lifecycle_stage == "active":
                return run_id
            run_id = found.data.tags.get("journal_id", run_id)  # a deleted run may have been created again
        except Exception as error:
            if not refused(error):
                raise
        active = self.client.search_runs(self._experiment_ids(), f"tags.journal_id = '{run_id}'")
        return str(active[0].info.run_id) if active else ""

    def away(self, error: BaseException) -> bool:
        """Whether a store that failed to open may answer later: a tracking server, a database, a locked file."""
        if self.uri.startswith(("http://", "https://")):
            return True
        return away(error) and (self.uri.startswith(DATABASES) or "locked" in str(error))

    def unusable(self, error: BaseException) -> TrackingError:
        """Return the error to raise if the store failed to open; it says what to do."""
        advice = (
            f"Is {self.root} writable? Moving mlflow.db away starts an empty store."
            if self.local
            else "Correct that URI or start what it names, or unset MLFLOW_TRACKING_URI to log to a local file."
        )
        if self.local and of_the_machine(error):
            advice = "Nothing recorded is lost: run the same command again when the cause is gone."
        said = last_line(error)
        for secret in passwords_of(self.uri):  # which MLflow's own advice may repeat without its URI
            said = said.replace(secret, "***")
        return TrackingError(f"the MLflow store {self.shown} cannot be used: {said}\n{advice}")

    def _experiment_ids(self) -> list[str]:
        found = pages(lambda token: self.client.search_experiments(page_token=token))
        return [str(one.experiment_id) for one in found]

    def _find_experiment(self, name: str) -> str:
        self.restore(name)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = str(self.root.resolve() / ARTIFACTS) if self.local else None
            return str(self.client.create_experiment(name, artifact_location=place))
        return str(found.experiment_id)


def last_line(error: BaseException) -> str:
    """Return the reason of an error in one line, without passwords: the innermost cause that its text names.

    SQLAlchemy's texts end with its SQL and the address of a help page, those of requests with a chain of reprs.
    """
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    lines = re.split(r"^(?:\[SQL:|\[parameters:|\(Background on)", text, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    line = printable(without_password(lines[-1] if lines else text))
    if "Caused by" not in line:
        return line
    inner = re.sub(r"[\"']\)+$", "", line.rpartition("Caused by")[2])
    numbered = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", inner)
    return str(numbered[-1]) if numbered else inner.rpartition(": ")[2]

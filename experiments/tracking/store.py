"""MLflow, and the only file that imports it: opening a store, and bringing a journal into it.

A store is a local SQLite file or a tracking server. Delivery may be repeated from any line on without a change: runs
are found by their tag `journal_id`, params stay as they are, metrics carry the time of their line and are stored once
per (name, time, step, value), tags and artifacts are replaced by themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.tracking.journal import Delivered, Event, Journal
from experiments.tracking.machine import process_alive

MAX_VALUE, MAX_TAG, MAX_BATCH, MAX_KEY = 6000, 8000, 100, 250  # MLflow's limits on params and tags
MAX_METRICS = 1000
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}


class Store:
    """A tracking store, opened on first use. uri: as in MLFLOW_TRACKING_URI; root: where a local store lies.

    refused: messages for lines that the store will never take (a deleted run, a file that is gone); they are passed
    over. Methods raise what MLflow raises when the store is away.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root, self.local = Path(root), uri is None
        self.uri = uri or f"sqlite:///{self.root / 'mlflow.db'}"
        self.server = self.uri.startswith(("http://", "https://"))
        self.refused: list[str] = []
        self._client: Any = None
        self._experiments: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._open()
            return self._client

    def experiment(self, name: str) -> str:
        """The id of an experiment, made where missing, restored where deleted."""
        with self._lock:
            if name not in self._experiments:
                _ = self.client  # opening takes the same lock
                with FileLock(self.root / "mlflow.db.lock") if self.local else contextlib.nullcontext():
                    self._experiments[name] = self._find_experiment(name)
            return self._experiments[name]

    def deliver(self, journal: Journal) -> Delivered:
        """Send what the store does not have yet, and note how far it got. Raises what MLflow raises."""
        with FileLock(f"{journal.path}.lock", timeout=60):
            done = journal.delivered(self.uri)
            for events, offset in _groups(journal.read(done.offset)):
                try:
                    run_id = self._send(journal, done.run_id, events)
                except Exception as error:
                    if not done.run_id or getattr(error, "error_code", "") not in REFUSED:
                        raise
                    run_id = done.run_id
                    self.refused.append(last_line(error))
                done = Delivered(run_id, offset)
                journal.note(self.uri, done)
            return done

    def reap(self) -> list[str]:
        """Mark as KILLED the runs whose process died on this machine without a word. Returns their ids."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        running = self.client.search_runs(experiments, "attributes.status = 'RUNNING'")
        dead = [run.info.run_id for run in running if not process_alive(run.data.tags)]
        for run_id in dead:
            self.client.set_tag(run_id, "error", "its process died")
            self.client.set_terminated(run_id, "KILLED")
        return dead

    def find_run(self, run_id: str) -> str:
        """The store's id of an active run named by that id or by its journal's; empty where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(run_id)
            return run_id if found.info.lifecycle_stage == "active" else ""
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        found = self.client.search_runs(experiments, f"tags.journal_id = '{run_id}'")
        return str(found[0].info.run_id) if found else ""

    def _send(self, journal: Journal, run_id: str, events: list[Event]) -> str:
        """Bring events of one kind into the store. Returns the run's id there."""
        from mlflow.entities import Param, RunTag

        event, client = events[0], self.client
        kind = event["event"]
        if kind == "start":
            return self._start(journal, run_id, event)
        if kind == "metrics":
            rows = [row for each in events for row in _metrics(each)]
            for start in range(0, len(rows), MAX_METRICS):
                client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS])
        elif kind == "tags":
            client.log_batch(run_id, tags=[RunTag(key(k), str(v)[:MAX_TAG]) for k, v in event["tags"].items()])
        elif kind == "params":
            known = client.get_run(run_id).data.params  # a value that the run already has stays as it is
            new = [Param(k, v) for k, v in event["params"].items() if k not in known]
            for start in range(0, len(new), MAX_BATCH):
                client.log_batch(run_id, params=new[start : start + MAX_BATCH])
        elif kind == "inputs":
            client.log_inputs(run_id, [_dataset(d) for d in event["datasets"]])
        elif kind == "artifact":
            self._artifact(run_id, journal.folder / event["path"], event["to"])
        elif kind == "end":
            client.set_terminated(run_id, event["status"], event["time"])
        return run_id

    def _start(self, journal: Journal, run_id: str, event: Event) -> str:
        """Make the run, or set it running again. Raises LookupError while its parent is not in the store."""
        tags = {key(name): str(value)[:MAX_TAG] for name, value in event["tags"].items()} | {"journal_id": journal.id}
        if event["parent"]:
            parent = self.find_run(event["parent"])
            if not parent:
                raise LookupError(f"the parent run {event['parent']} is not in the store yet: sync its folder too")
            tags |= {"parent": parent, "mlflow.parentRunId": parent}
        found = run_id or self.find_run(journal.id) or (self.find_run(event["run"]) if event["run"] else "")
        if not found:
            experiment = self.experiment(event["experiment"])
            run = self.client.create_run(experiment, event["time"], tags, event["name"])
            return str(run.info.run_id)
        from mlflow.entities import RunTag

        if "error" in self.client.get_run(found).data.tags:  # of the attempt before
            self.client.delete_tag(found, "error")
        self.client.log_batch(found, tags=[RunTag(k, v) for k, v in tags.items()])
        self.client.update_run(found, status="RUNNING")
        return found

    def _artifact(self, run_id: str, path: Path, to: str | None) -> None:
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), to)
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), to)
        else:
            self.refused.append(f"{path} is gone before it could be sent")

    def _find_experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = str(self.root / "artifacts") if self.local else None
            return str(self.client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _open(self) -> Any:
        mlflow_client = _import_mlflow()
        if not self.local:
            return mlflow_client(tracking_uri=self.uri)
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "mlflow.db.lock"):
            if not (self.root / "mlflow.db").is_file():
                _create_store(mlflow_client, self.root / "mlflow.db")
            with contextlib.closing(sqlite3.connect(self.root / "mlflow.db")) as connection:
                connection.execute("PRAGMA schema_version")  # MLflow would try a broken file for two minutes
            client = mlflow_client(tracking_uri=self.uri)
            client.search_experiments(max_results=1)  # migrates the store, or says that it is not one
        return client


def key(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", str(name))[:MAX_KEY]


def last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _groups(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Metrics that follow each other together, up to one request's worth; everything else alone."""
    waiting: list[Event] = []
    behind = count = 0
    for event, offset in events:
        metrics = event["event"] == "metrics"
        if waiting and (not metrics or count + len(event["values"]) > MAX_METRICS):
            yield waiting, behind
            waiting, count = [], 0
        if metrics:
            waiting.append(event)
            behind, count = offset, count + len(event["values"])
        else:
            yield [event], offset
    if waiting:
        yield waiting, behind


def _metrics(event: Event) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key(name), value, event["time"], event["step"]) for name, value in event["values"].items()]


def _dataset(values: Mapping[str, Any]) -> Any:
    """A dataset as MLflow's run input; what is neither name nor digest becomes its profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {name: value for name, value in values.items() if name not in ("name", "digest", "kind")}
    source = json.dumps({"kind": values.get("kind", ""), "name": values["name"]})
    dataset = Dataset(
        str(values["name"])[:500], str(values["digest"])[:36], "code", source, profile=json.dumps(profile)
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", str(values.get("kind", "training")))])


def _import_mlflow() -> Any:
    """The client class; imported on first use, since it takes a second and reads its settings then."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the journal tries again; the default blocks minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; `Run` warns once, in a line
    if not event.contains(Engine, "connect", _sync_normal):
        event.listen(Engine, "connect", _sync_normal)
    return MlflowClient


def _sync_normal(connection: Any, _: Any) -> None:
    """With a write-ahead log NORMAL survives a crash of the process, and saves a disk flush at every commit."""
    if isinstance(connection, sqlite3.Connection):
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()


def _create_store(mlflow_client: Any, path: Path) -> None:
    """Make the database beside its place and move it there: killed halfway, it leaves nothing that looks whole."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    client = mlflow_client(tracking_uri=f"sqlite:///{part}")
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()
    with contextlib.closing(sqlite3.connect(part)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    os.replace(part, path)

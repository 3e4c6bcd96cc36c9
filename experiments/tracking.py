"""MLflow, and the only file that imports it: a local SQLite store, runs that always end in a true status.

Tracking serves training and never stops it: what cannot be logged is counted and warned about once, and the item
records on disk stay complete. Metrics are sent in batches about once a second, and again if a batch did not pass.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import sqlite3
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.machine import code_diff, code_tags, hardware_tags, process_alive, process_tags, sigterm_raises

PORT = 5000
FLUSH_SECONDS, RETRY_SECONDS = 1.0, 10.0  # between batches of metrics; after one that failed
MAX_VALUE, MAX_TAG, MAX_BATCH, MAX_KEY = 6000, 8000, 100, 250  # MLflow's limits on params and tags
MAX_METRICS, MAX_PENDING = 1000, 100_000


class TrackingError(RuntimeError):
    """The store cannot be opened; raised before anything is trained."""


class Tracker:
    """An MLflow experiment in `root/mlflow.db`, or at MLFLOW_TRACKING_URI if that is set.

    root: the folder of the store (`mlruns`); artifacts of the local store lie in `root/artifacts`.
    experiment: its name, created where missing. Raises TrackingError where the store cannot be opened.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = Path(root).resolve()
        self.remote = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = self.remote or f"sqlite:///{self.root / 'mlflow.db'}"
        try:
            self.client = self._open()
            self.experiment_id = self._experiment(experiment)
        except Exception as error:
            raise TrackingError(
                f"the MLflow store {self.uri} cannot be used: {_last_line(error)}\n"
                + (
                    "Start that server, or unset MLFLOW_TRACKING_URI to log to a local file."
                    if self.remote
                    else f"Is {self.root} writable? Moving mlflow.db away starts an empty store."
                )
            ) from error

    @contextlib.contextmanager
    def run(
        self,
        name: str,
        kind: str = "experiment",
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, FAILED (an exception, or `Run.fail`) or KILLED (Ctrl-C, SIGTERM).

        kind: `experiment` or `arm`, a tag. parent: id of the run it belongs to. params: may be nested. run_id: a run
        to continue; a new one is made where the store does not have it. An experiment notes code and machine.
        """
        run = Run(self.client, self._start(name, run_id))
        run.set_tags(
            process_tags() | {"kind": kind} | ({"parent": parent, "mlflow.parentRunId": parent} if parent else {})
        )
        run.set_tags(dict(tags or {}))
        run.log_params(params or {})
        if kind == "experiment":
            run.set_tags(code_tags() | hardware_tags())
            if diff := code_diff():
                run.log_text(diff, "code/uncommitted.diff")
        status = "FINISHED"
        with sigterm_raises():
            try:
                yield run
                status = "FAILED" if run.reason else status
            except (KeyboardInterrupt, SystemExit):
                status = "KILLED"
                raise
            except BaseException as error:
                status = "FAILED"
                run.fail(_last_line(error))
                run.log_text(traceback.format_exc(), "traceback.txt")
                raise
            finally:
                run.close(status)

    def reap(self) -> list[str]:
        """Mark as KILLED the runs whose process died on this machine without a word. Returns their ids."""
        with contextlib.suppress(Exception):  # a run wrongly shown as running is no reason not to train
            experiments = [e.experiment_id for e in self.client.search_experiments()]
            running = self.client.search_runs(experiments, "attributes.status = 'RUNNING'")
            dead = [run.info.run_id for run in running if not process_alive(run.data.tags)]
            for run_id in dead:
                self.client.set_tag(run_id, "error", "its process died")
                self.client.set_terminated(run_id, "KILLED")
            return dead
        return []

    def ui_command(self) -> str:
        """The shell command that opens the UI on this store, on loopback, in two processes instead of fifteen."""
        if self.remote and self.remote.startswith("http"):
            return f"python -m webbrowser {shlex.quote(self.remote)}"
        store = '"$MLFLOW_TRACKING_URI"' if self.remote else f"sqlite:///{shlex.quote(_short(self.root / 'mlflow.db'))}"
        return (
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true "
            f"{shlex.quote(_short(Path(sys.executable)))} -m mlflow server --backend-store-uri {store} "
            f"--host 127.0.0.1 --port {PORT} --workers 1"
        )

    def run_url(self, run_id: str, server: str | None = None) -> str:
        """Where the UI shows a run, in its view for training rather than the one for agents."""
        local = f"http://127.0.0.1:{PORT}"
        server = server or (self.remote if self.remote and self.remote.startswith("http") else local)
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}?workflowType=machine_learning"

    def _open(self) -> Any:
        mlflow_client = _import_mlflow()
        if self.remote:
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

    def _experiment(self, name: str) -> str:
        with FileLock(self.root / "mlflow.db.lock") if not self.remote else contextlib.nullcontext():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                place = None if self.remote else str(self.root / "artifacts")
                return str(self.client.create_experiment(name, artifact_location=place))
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)

    def _start(self, name: str, run_id: str | None) -> str:
        """The id of a continued or a new run; empty, with a warning, where the store fails."""
        if run_id:
            with contextlib.suppress(Exception):
                found = self.client.get_run(run_id)
                if found.info.lifecycle_stage == "active":
                    self.client.update_run(run_id, status="RUNNING")
                    if "error" in found.data.tags:  # of the attempt before
                        self.client.delete_tag(run_id, "error")
                    return run_id
        try:
            return str(self.client.create_run(self.experiment_id, run_name=name).info.run_id)
        except Exception as error:
            warnings.warn(f"MLflow cannot start {name!r}, which goes on untracked: {_last_line(error)}", stacklevel=2)
            return ""


class Run:
    """Writes to one MLflow run. No method raises because of MLflow: `faults` counts what did not pass.

    id: empty for a run that the store refused; everything is then dropped. reason: set by `fail`.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self.id, self.faults, self.reason = run_id, 0, ""
        self._client = client
        self._pending: list[Any] = []
        self._due = 0.0

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Note numbers at a step; what is not a number is left out. They are sent within about a second."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [
            Metric(_key(name), float(value), now, step)
            for name, value in metrics.items()
            if isinstance(value, int | float)
        ]
        if time.monotonic() >= self._due:
            self.flush()

    def log_metrics_at(self, step: int, metrics: Mapping[str, Any]) -> None:
        """log_metrics with its arguments in the order of a training callback."""
        self.log_metrics(metrics, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested values under dotted names. A value that a continued run already has stays as it is."""
        from mlflow.entities import Param

        flat = flatten(params)
        known = self._attempt(self._client.get_run, self.id) if flat else None
        new = [Param(k, v) for k, v in flat.items() if known is None or k not in known.data.params]
        for start in range(0, len(new), MAX_BATCH):
            self._attempt(self._client.log_batch, self.id, params=new[start : start + MAX_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(_key(name), str(value)[:MAX_TAG]) for name, value in tags.items()]
        if rows:
            self._attempt(self._client.log_batch, self.id, tags=rows)

    def log_note(self, markdown: str) -> None:
        """The description that the UI shows on top of the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._attempt(self._client.log_artifact, self.id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._attempt(self._client.log_text, self.id, text, name)

    def log_figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure as the image `name`."""
        self._attempt(self._client.log_figure, self.id, figure, name)

    def fail(self, reason: str) -> None:
        """Let the run end as FAILED although its block ends without an exception."""
        self.reason = reason or "no reason given"
        self.set_tags({"error": self.reason})

    def flush(self) -> None:
        """Send what is pending; what does not pass is kept for the next attempt."""
        while self._pending:
            batch = self._pending[:MAX_METRICS]
            before = self.faults
            self._attempt(self._client.log_batch, self.id, metrics=batch)
            if self.faults > before:
                self._pending = self._pending[-MAX_PENDING:]
                self._due = time.monotonic() + RETRY_SECONDS
                return
            del self._pending[: len(batch)]
        self._due = time.monotonic() + FLUSH_SECONDS

    def close(self, status: str) -> None:
        self.flush()
        if self.faults:
            self.set_tags({"tracking_faults": str(self.faults)})
        self._attempt(self._client.set_terminated, self.id, status)

    def _attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.id:
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:
            self.faults += 1
            if self.faults == 1:
                warnings.warn(f"MLflow: {_last_line(error)}; training goes on, records are on disk", stacklevel=3)
            return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists of mappings as dotted names; values as text, cut to what MLflow stores."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
            flat[_key(key)] = text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
    return flat


def _import_mlflow() -> Any:
    """The client class; imported on first use, since it takes a second and reads its settings then."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks minutes on a dead server
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
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


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below it, so that commands can be read and copied."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", str(name))[:MAX_KEY]


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]

"""Tracking: runs that always end in a true status, written to a journal first and brought to MLflow from there.

Tracking serves training and never stops it. Every call appends a line to the run's journal (journal.py); a thread
(delivery.py) brings the lines to the store (store.py, the only file that imports MLflow). A store that is slow, locked
or away gets them later: on its return, at the next start, or by `sync`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tracking.delivery import Delivery
from experiments.tracking.journal import Journal, find, journals
from experiments.tracking.machine import (
    code_diff,
    code_tags,
    hardware_tags,
    process_alive,
    process_tags,
    sigterm_raises,
    system_metrics,
)
from experiments.tracking.store import MAX_VALUE, Store, last_line
from experiments.tracking.store import key as store_key

PORT = 5000
START_SECONDS, CLOSE_SECONDS = 20.0, 60.0  # how long a store that answers is waited for


class TrackingError(RuntimeError):
    """The local store cannot be opened, or nothing can be synced; raised before anything is trained."""


class Tracker:
    """An MLflow experiment in `root/mlflow.db`, or at MLFLOW_TRACKING_URI if that is set.

    root: the folder of the store (`mlruns`); artifacts of the local store lie in `root/artifacts`.
    experiment: its name, created where missing. Raises TrackingError where a local store cannot be opened. A server
    that does not answer is warned about in one line: the journals take everything, and bring it there later.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = Path(root).resolve()
        self.remote = os.environ.get("MLFLOW_TRACKING_URI")
        self.store = Store(self.root, self.remote)
        self.uri, self.experiment = self.store.uri, experiment
        self.delivery = Delivery(self.store, self._sample)
        self._open: list[Run] = []
        try:
            self.store.experiment(experiment)
        except Exception as error:
            if not self.store.server:
                raise _unusable(self.store, error) from error
            warnings.warn(
                f"{self.uri} does not answer ({last_line(error)}): this run is kept in its journal, to be sent later",
                stacklevel=2,
            )
            self.delivery.failed(last_line(error))
            self.delivery.announced = True

    @property
    def client(self) -> Any:
        """MLflow's client of this store. Raises what MLflow raises where the store is away."""
        return self.store.client

    @property
    def experiment_id(self) -> str:
        return self.store.experiment(self.experiment)

    @contextlib.contextmanager
    def run(
        self,
        name: str,
        kind: str = "experiment",
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        folder: Path | None = None,
    ) -> Iterator[Run]:
        """A run that ends FINISHED, FAILED (an exception, or `Run.fail`) or KILLED (Ctrl-C, SIGTERM).

        kind: `study`, `trial`, `experiment` or `arm`, a tag. parent: id of the run it belongs to. params: may be
        nested. run_id: a run to continue; a new one is made where neither journal nor store has it. folder: where its
        journal lies, the run's own folder; default: `root/journals`. Every run notes code, packages and machine.
        """
        folder = Path(folder).resolve() if folder else self.root / "journals"
        journal = (find(folder, run_id) if run_id else None) or Journal.create(folder, f"{kind}-{name}")
        noted = process_tags() | code_tags() | hardware_tags() | {"kind": kind} | dict(tags or {})
        journal.append("start", name=name, experiment=self.experiment, parent=parent, run=run_id, tags=noted)
        run = Run(journal, self.delivery, self.uri)
        if params:
            run.log_params(params)
        if diff := code_diff():
            run.log_text(diff, "code/uncommitted.diff")
        self._open.append(run)
        self.delivery.add(journal)
        self.delivery.drain(START_SECONDS)
        run.warn_once()
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
                run.fail(last_line(error))
                run.log_text(traceback.format_exc(), "traceback.txt")
                raise
            finally:
                self._open.remove(run)
                run.close(status)

    def reap(self) -> list[str]:
        """Mark as KILLED the runs whose process died on this machine without a word. Returns their ids."""
        with contextlib.suppress(Exception):  # a run wrongly shown as running is no reason not to train
            return [] if self.delivery.message else self.store.reap()
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
        try:
            experiment = self.experiment_id
        except Exception:  # the store is away; the run has no page yet
            return server
        return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    def _sample(self) -> None:
        """System metrics go to the innermost open run, at its age in seconds."""
        if self._open:
            run = self._open[-1]
            run.log_metrics(system_metrics(), run.age())


class Run:
    """Writes one run's journal. No method raises or waits because of MLflow.

    reason: set by `fail`.
    """

    def __init__(self, journal: Journal, delivery: Delivery, uri: str) -> None:
        self.journal, self.reason = journal, ""
        self._delivery, self._uri = delivery, uri
        self._began = time.monotonic()

    @property
    def id(self) -> str:
        """The id that the store gave the run; before it did, the journal's, which serves as `parent` and `run_id`."""
        return self.journal.delivered(self._uri).run_id or self.journal.id

    @property
    def faults(self) -> int:
        """Deliveries that failed since the tracker was made."""
        return self._delivery.faults

    def age(self) -> int:
        return int(time.monotonic() - self._began)

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Note numbers at a step; what is not a number is left out. They reach the store within about a second."""
        values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        if values:
            self.journal.append("metrics", step=step, values=values)
        self.warn_once()

    def log_metrics_at(self, step: int, metrics: Mapping[str, Any]) -> None:
        """log_metrics with its arguments in the order of a training callback."""
        self.log_metrics(metrics, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nested values under dotted names. A value that a continued run already has stays as it is."""
        self._write("params", params=flatten(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._write("tags", tags={name: str(value) for name, value in tags.items()})

    def log_note(self, markdown: str) -> None:
        """The description that the UI shows on top of the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_inputs(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """What the run read: per dataset `name`, `digest`, and where known `kind` (training, replay) and `share`."""
        self._write("inputs", datasets=[dict(d) for d in datasets])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with all that is in it, as an artifact. It must stay until it has arrived."""
        place = os.path.relpath(Path(path).resolve(), self.journal.folder)
        self._write("artifact", path=place, to=folder)

    def log_text(self, text: str, name: str) -> None:
        """Text as the artifact `name`, a path; kept in `<journal>/` beside the journal."""
        self._own(name).write_text(text, encoding="utf-8")
        self._send_own(name)

    def log_model(self, folder: Path) -> None:
        """The trained tensors that `ctrl.save` wrote, as the artifact `trained`; `download` gives them back."""
        self.log_file(folder, "trained")

    def fail(self, reason: str) -> None:
        """Let the run end as FAILED although its block ends without an exception."""
        self.reason = reason or "no reason given"
        self.set_tags({"error": self.reason})

    def close(self, status: str) -> None:
        if self._delivery.faults:
            self.set_tags({"tracking_faults": str(self._delivery.faults)})
        self.journal.append("end", status=status)
        self.journal.close()
        if not self._delivery.drain(CLOSE_SECONDS):
            self._delivery.announced = False
            self.warn_once(f"; later: python -m experiments.cli sync {shlex.quote(_short(self.journal.folder))}")
        self._delivery.ended(self.journal)

    def warn_once(self, advice: str = "") -> None:
        """One line per outage, from the thread that trains."""
        if self._delivery.message and not self._delivery.announced:
            self._delivery.announced = True
            text = f"MLflow: {self._delivery.message}; training goes on, the journal keeps everything{advice}"
            warnings.warn(text, stacklevel=3)

    def _write(self, event: str, **values: Any) -> None:
        self.journal.append(event, **values)
        self.journal.to_disk()
        self.warn_once()

    def _own(self, name: str) -> Path:
        path = self.journal.path.with_suffix("") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _send_own(self, name: str) -> None:
        self.log_file(self._own(name), str(Path(name).parent) if Path(name).parent != Path() else None)


def sync(folders: Sequence[Path], root: Path, uri: str | None = None) -> dict[Path, str]:
    """Bring the journals at or below folders to the store: `uri`, MLFLOW_TRACKING_URI, or the local one in `root`.

    Returns what happened per journal: the run's id there, or why it is not. A run whose process died is ended as
    KILLED. Raises TrackingError where the store cannot be opened or a folder holds no journal.
    """
    store = Store(Path(root).resolve(), uri or os.environ.get("MLFLOW_TRACKING_URI"))
    found = {journal.path: journal for folder in folders for journal in journals(folder)}
    if not found:
        raise TrackingError(f"no journal in {', '.join(map(str, folders))}: give run folders, as mlruns/runs/NAME")
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:
        raise _unusable(store, error) from error
    said = {}
    for path, journal in found.items():
        start = journal.last("start")
        if start and not journal.ended() and not process_alive(start["tags"]):
            journal.append("tags", tags={"error": "its process died"})
            journal.append("end", status="KILLED")
            journal.close()
        try:
            said[path] = store.deliver(journal).run_id
        except Exception as error:
            said[path] = f"not sent: {last_line(error)}"
    return said


def download(run_id: str, name: str, root: Path, to: Path | None = None) -> Path:
    """An artifact of a run, a file or a folder, on this disk. `ctrl.load(base, download(run_id, "trained", root))`.

    root: the folder of the local store, not read where MLFLOW_TRACKING_URI is set. to: the folder it is put in, a
    new temporary one by default.
    """
    store = Store(Path(root).resolve(), os.environ.get("MLFLOW_TRACKING_URI"))
    folder = to or Path(tempfile.mkdtemp(prefix="artifact-"))
    return Path(store.client.download_artifacts(run_id, name, str(folder)))


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
            flat[store_key(key)] = text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
    return flat


def _unusable(store: Store, error: BaseException) -> TrackingError:
    advice = (
        f"Is {store.root} writable? Moving mlflow.db away starts an empty store."
        if store.local
        else "Start that server, or unset MLFLOW_TRACKING_URI to log to a local file."
    )
    return TrackingError(f"the MLflow store {store.uri} cannot be used: {last_line(error)}\n{advice}")


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below it, so that commands can be read and copied."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

"""Track runs in MLflow so that each ends with its true status, whatever happens to the process or the store.

Tracking never stops training. Every call appends a line to the run's journal (journal.py); a thread (delivery.py)
sends the lines to the store (senders.py). A store that is slow, locked or offline gets them later: when it answers
again, at the next start, or by `sync`. Only client.py imports MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.common.paths import short_path
from experiments.common.signals import sigterm_raises
from experiments.tracking.client import answered
from experiments.tracking.delivery import Delivery
from experiments.tracking.diff import code_diff
from experiments.tracking.journal import Journal, find
from experiments.tracking.machine import (
    code_tags,
    hardware_tags,
    process_tags,
)
from experiments.tracking.reap import reap, sweep_root
from experiments.tracking.run import Run
from experiments.tracking.senders import CHAIN
from experiments.tracking.store import TrackingStore, last_line
from experiments.tracking.sync import send_missing
from experiments.tracking.system import system_metrics
from experiments.tracking.uri import page

PORT = 5000
START_SECONDS = 20.0  # longest wait for a store that answers


class Tracker:
    """An MLflow experiment in `root/mlflow.db`, or at MLFLOW_TRACKING_URI if that is set.

    root: the folder of the local store (`mlruns`), with its artifacts in `root/artifacts`. experiment: name, created
    if missing. Raises TrackingError if a local store cannot be opened or the URI names no kind of store. A server or
    database that does not answer causes a warning of one line: the journals keep everything and are sent later.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = Path(root).resolve()
        self.remote = os.environ.get("MLFLOW_TRACKING_URI")
        self.store = TrackingStore(self.root, self.remote)
        self.uri, self.experiment = self.store.uri, experiment
        self.delivery = Delivery(self.store, self._sample)
        self._open: list[Run] = []
        try:
            self.store.experiment(experiment)
        except Exception as error:
            if not self.store.away(error):
                raise self.store.unusable(error) from error
            if not self.delivery.announced:
                what = "refuses" if answered(error) else "does not answer"
                warnings.warn(
                    f"{self.store.shown} {what} ({last_line(error)}): this run is kept in its journal, to be "
                    "sent later",
                    stacklevel=2,
                )
            self.delivery.failed(last_line(error))
            self.delivery.announced = True

    @property
    def client(self) -> Any:
        """MLflow's client of this store. Raises errors of MLflow while the store is offline."""
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
        joins: bool = False,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        folder: Path | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Iterator[Run]:
        """Open a run. It ends as FINISHED, FAILED (an exception, or `Run.fail`) or KILLED (Ctrl-C, SIGTERM).

        kind: a tag: `study`, `trial`, `experiment`, `arm` or `posthoc`. parent: id of the parent run. joins: be a part
        of that run, with a journal of its own, unless an earlier version began it as a run. params: may be nested.
        run_id: a run to continue; a new one is made if neither journal nor store has it. folder: of the journal;
        default: `root/journals`. note: keeps the run's id for the next start. It is called before the journal
        has a line, and again when the store has given its own id, so that a kill between leaves one run.

        Every run logs code, packages and machine (environment.json), and has the names of its parents in the tags
        `study`, `trial` and `experiment`.
        """
        folder = Path(folder).resolve() if folder else self.root / "journals"
        note = note or (lambda run_id: None)
        if journal := find(folder, run_id) if run_id else None:
            note(str(run_id))
        else:
            journal = Journal.create(folder, f"{kind}-{name}")
            note(journal.id)
        joins = bool(journal.joins) if journal.size else joins
        own = {"kind": kind} | ({kind: name} if kind in CHAIN else {})
        environment = code_tags() | hardware_tags()
        noted = process_tags() | environment | own | dict(tags or {})
        start = {"name": name, "experiment": self.experiment, "parent": parent, "run": run_id, "tags": noted}
        journal.append("start", **start, **({"joins": True} if joins else {}))
        run = Run(journal, self.delivery, self.uri)
        if params:
            run.log_params(params)
        if kind != "arm" and not joins:  # it is that of its parent
            run.log_text(json.dumps(environment, indent=2), "environment.json")
        if (diff := code_diff()) and not joins:
            run.log_text(diff, "code/uncommitted.diff")
        self._open.append(run)
        self.delivery.add(journal)
        self.delivery.drain(START_SECONDS)
        run.warn_once()
        note(run.id)
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
                raise
            finally:
                self._open.remove(run)
                run.close(status)
                above = self._open[-1] if self._open else None
                if above and joins and parent == above.journal.run:
                    above.reason = above.reason or run.reason

    def reap(self) -> list[str]:
        """Deliver journals of dead processes of this machine, mark runs without an end as KILLED, return their ids.

        Their temporary files are deleted.
        """
        with contextlib.suppress(Exception):  # a run wrongly shown as running must not stop training
            sweep_root(self.root)
            return [] if self.delivery.message else reap(self.store, self.root, START_SECONDS)
        return []

    def send_missing(self, found: Iterable[Journal]) -> str:
        """Send the ended runs that the store lacks, if it answers. found: parents first. Returns why it cannot."""
        if self.delivery.message:
            return ""  # the user was warned, and `sync` sends all later
        return send_missing(self.store, found, {run.journal.id for run in self._open})

    @property
    def serves_ui(self) -> bool:
        """Whether `ui_command` starts a server; a remote store has one already."""
        return not (self.remote and self.remote.startswith("http"))

    def ui_command(self, port: int | None = None) -> str:
        """Return the shell command that opens the UI on this store: on loopback, in two processes, not fifteen.

        port: default: PORT.
        """
        python = shlex.quote(short_path(sys.executable))
        if self.remote and not self.serves_ui:
            return f"{python} -m webbrowser {shlex.quote(page(self.remote))}"
        file = f"sqlite:///{shlex.quote(short_path(self.root / 'mlflow.db'))}"
        store = '"$MLFLOW_TRACKING_URI"' if self.remote else file  # not an argument: all users of a machine see these
        return (
            f"MLFLOW_BACKEND_STORE_URI={store} MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true "
            f"{python} -m mlflow server --host 127.0.0.1 --port {port or PORT} --workers 1"
        )

    def run_url(self, run_id: str, server: str | None = None) -> str:
        """Return the address of a run in the UI, in its view for training rather than for generative models."""
        local = f"http://127.0.0.1:{PORT}"
        server = server or (page(self.remote) if self.remote and self.remote.startswith("http") else local)
        try:
            experiment = self.experiment_id
        except Exception:  # the store is offline; the run has no page yet
            return server
        return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    def _sample(self) -> None:
        """Log system metrics to the innermost open run, at its age in seconds."""
        with contextlib.suppress(Exception):  # an error of the driver must not end the thread that delivers
            run = self._open[-1]
            if run.measured:  # MLflow's Compare opens on the metric that was logged first
                run.log_metrics(system_metrics(), run.age())

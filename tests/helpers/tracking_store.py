"""What the tests read of a store, and what takes one away from a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker

ROOT = Path(__file__).resolve().parents[2]


TRAIN = """
import sys, time
from pathlib import Path
from experiments.tracking.tracker import Tracker
with Tracker(Path(sys.argv[1]), "demo").run("demo") as run:
    run.log_metrics({"loss": 2.0}, 1)
    print(run.id, flush=True)
    time.sleep(60)
"""


# Three at once, forked from a process that has imported everything: that takes most of their time otherwise.
THREE = f"""
import os, sys
import torch, experiments.tracking.tracker, mlflow.artifacts, mlflow.genai, mlflow.store.tracking.sqlalchemy_store
children = []
for _ in range(3):
    if not (child := os.fork()):
        exec({TRAIN.replace("time.sleep(60)", "pass")!r})
        sys.exit()
    children.append(child)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), file=sys.stderr)
"""


def start_training(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def read(tracker: Tracker, run: Run) -> Any:
    return tracker.client.get_run(run.id)


def artifacts(tracker: Tracker, run: Run, folder: str | None = None) -> list[str]:
    return [file.path for file in tracker.client.list_artifacts(run.id, folder)]


def models(tracker: Tracker) -> list[Any]:
    """All that the store knows of all logged models, to compare."""
    found = tracker.client.search_logged_models([tracker.experiment_id])
    return sorted(
        (m.model_id, m.name, str(m.status), m.source_run_id, m.params, m.tags, _points(m.metrics), m.creation_timestamp)
        for m in found
    )


def _points(metrics: list[Any] | None) -> list[Any]:
    return sorted((m.key, m.value, m.timestamp, m.step) for m in metrics or [])


def everything(tracker: Tracker) -> list[Any]:
    """All that the store knows of all runs, to compare."""
    found = []
    for run in tracker.client.search_runs([tracker.experiment_id]):
        history = {
            name: [
                (m.step, m.timestamp, str(m.value)) for m in tracker.client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        info = (run.info.run_id, run.info.status, run.info.start_time, run.info.end_time)
        inputs = [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs]
        outputs = [(output.model_id, output.step) for output in run.outputs.model_outputs]
        found.append((info, run.data.params, run.data.tags, history, inputs, outputs))
    return sorted(found, key=lambda row: row[0])


class Broken:
    """A client whose store is down until `up`."""

    def __init__(self, client: Any) -> None:
        self.client, self.up = client, False

    def __getattr__(self, name: str) -> Any:
        if self.up:
            return getattr(self.client, name)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("store is down")

        return fail


class LosesAnswers:
    """A client whose store does each thing, and whose first answer to it is lost, as with a gateway that says 502.

    Arguments tell things apart; those of MLflow's own classes by what they hold.
    """

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, set[str]()

    def __getattr__(self, name: str) -> Any:
        def once_lost(*args: Any, **kwargs: Any) -> Any:
            answer, call = getattr(self.client, name)(*args, **kwargs), repr((name, _held(args), _held(kwargs)))
            if call not in self.asked:
                self.asked.add(call)
                raise OSError("502 Bad Gateway")
            return answer

        return once_lost


def _held(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _held(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_held(item) for item in value]
    return _held(vars(value)) if hasattr(value, "__dict__") else value


def serve(root: Path, port: int) -> subprocess.Popen[bytes]:
    """A real server on its own store; returns when it answers."""
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--artifacts-destination", str(root / "served"), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, "--workers", "1"], env=environment, cwd=root, start_new_session=True)
    deadline = time.monotonic() + 150
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            return server
        except OSError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.3)


def stop(server: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    if server.poll() is None:
        os.killpg(server.pid, number)
    server.wait(30)


def statuses(root: Path) -> dict[str, str]:
    tracker = Tracker(root, "small")
    runs = tracker.client.search_runs([tracker.experiment_id])
    return {run.info.run_name: run.info.status for run in runs}

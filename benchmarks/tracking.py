"""What tracking costs per training step: `python -m benchmarks.tracking --write` makes tracking.md beside it.

Sixty metrics a step go to a SQLite store and to a server on loopback. Main thread: CPU seconds of the thread that
trains inside `log_metrics`. Process: CPU seconds of the whole process per step, the delivery thread's included, which
a training step on all cores would feel in part. Percent of a step of 1.3 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from experiments.reporting.table import Table
from experiments.tracking.tracker import Tracker

STEPS, METRICS, STEP_SECONDS, PAUSE, PORT = 60, 60, 1.3, 0.2, 5995


def measure(root: Path) -> tuple[float, float, float]:
    """Median CPU seconds of the main thread per step, their 99th percentile, CPU seconds of the process per step."""
    tracker = Tracker(root / "mlruns", "benchmark")
    metrics = {f"alpha/layer_{i}": i / METRICS for i in range(METRICS)}
    times = []
    with tracker.run("benchmark", kind="arm", folder=root / "run") as run:
        before = time.process_time()
        for step in range(STEPS):
            start = time.thread_time()
            run.log_metrics(metrics, step)
            times.append(time.thread_time() - start)
            time.sleep(PAUSE)
        tracker.delivery.drain(60)
        process = (time.process_time() - before) / STEPS
        assert len(tracker.client.get_metric_history(run.id, "alpha/layer_7")) == STEPS, "not all has arrived"
    return statistics.median(times), sorted(times)[int(0.99 * STEPS)], process


def serve(root: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    server = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).read()
            return server
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"no server on port {PORT} after 90 s: is the port taken?")


def row(store: str, figures: tuple[float, float, float]) -> tuple[str, ...]:
    median, high, process = figures
    share, whole = 100 * median / STEP_SECONDS, 100 * process / STEP_SECONDS
    return store, f"{1e3 * median:.2f}", f"{1e3 * high:.2f}", f"{share:.3f} %", f"{1e3 * process:.1f}", f"{whole:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write tracking.md")
    args = parser.parse_args()
    lines = [
        "# Cost of tracking",
        "",
        f"By `python -m benchmarks.tracking --write`: {METRICS} metrics a step, {STEPS} steps, one every {PAUSE} s;",
        f"CPU ms per step, and percent of a step of {STEP_SECONDS} s. Process: the delivery thread included.",
        "",
    ]
    head = ("store", "main thread, median", "99th percentile", "of the step", "process", "of the step")
    rows = []
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(row("SQLite file", measure(Path(folder))))
    with tempfile.TemporaryDirectory() as folder:
        server = serve(Path(folder))
        try:
            os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{PORT}"
            rows.append(row("server on loopback", measure(Path(folder))))
        finally:
            server.terminate()
            server.wait(30)
    text = "\n".join([*lines, Table("", head, tuple(rows)).markdown()]) + "\n"
    print(text)
    if args.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Several workers on a PostgreSQL server of this machine, as several machines would share one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.studies.queue import Store
from tests.helpers.toy_study import SEARCH, kill, logging_run, start_workers, toy_study, value, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def binary(name: str) -> str:
    """PostgreSQL's own tools; Debian keeps them out of the path."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"no PostgreSQL on this machine: {name} is missing (apt-get install postgresql)")
    return str(Path(found).resolve())


@pytest.fixture
def server() -> Iterator[str]:
    """URL of a server on loopback with a new, empty database. PostgreSQL refuses to run as root."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:
        import pwd

        user = pwd.getpwnam("nobody")
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    folder.chmod(0o777)
    initdb = [binary("initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "study", "--no-sync"]
    done = subprocess.run(initdb, check=False, capture_output=True, text=True, cwd=folder, **as_user)  # type: ignore[call-overload]
    if done.returncode:
        pytest.skip(f"initdb does not work here: {done.stderr.strip().splitlines()[-1:]}")
    command = [binary("postgres"), "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    process = subprocess.Popen([*command, "-F"], cwd=folder, stderr=subprocess.DEVNULL, **as_user)  # type: ignore[call-overload]
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to leave
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_workers_share_a_server_and_survive_kills(server: str, tmp_path: Path) -> None:
    config = toy_study(storage=server)
    Store(server, config).begin()
    log = tmp_path / "log"
    doomed = start_workers(server, config, logging_run(log, 60), 2)
    wait_for(lambda: log.is_file() and log.read_text().count("begin") == 2)
    [worker] = start_workers(server, config, logging_run(log, 0.3), 1)
    wait_for(lambda: log.read_text().count("begin") > 2)
    kill(doomed)
    worker.join(60)
    assert worker.exitcode == 0
    trials = Store(server, name="toy").trials()
    cells = len(SEARCH["training.steps"]["values"]) * len(SEARCH["rate"]["values"])  # type: ignore[arg-type]
    assert [trial.state for trial in trials] == ["complete"] * cells
    assert sum(trial.attempts for trial in trials) == cells + 2
    assert all(trial.values == [value(trial.picks)] for trial in trials)
    ends = [line for line in log.read_text().splitlines() if line.startswith("end")]
    assert len(ends) == len(set(ends)) == cells


def test_a_worker_of_another_machine_is_missed_by_its_heartbeat(server: str, tmp_path: Path) -> None:
    """Its process cannot be looked up from here; the silence of its heartbeat tells."""
    config = toy_study(storage=server, heartbeat=1)
    Store(server, config).begin()
    log = tmp_path / "log"
    workers = start_workers(server, config, logging_run(log, 60), 1)
    wait_for(log.is_file)
    kill(workers)
    store = Store(server, config)
    [running] = [t for t in store.study.trials if t.state.name == "RUNNING"]
    owner = {**running.user_attrs["owner"], "host": "another-machine"}
    store.storage.set_trial_user_attr(running._trial_id, "owner", owner)
    seen: list[int] = []
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        with store.lock():
            seen = [t.number for t in store._tidy() if t.system_attrs.get("retry_history") == [running.number]]
        time.sleep(0.2)
    assert seen, "the silent trial was not queued again"

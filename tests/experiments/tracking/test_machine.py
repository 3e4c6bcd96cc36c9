"""A process is known by its machine, boot, id and start; SIGTERM and SIGHUP end its run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from experiments.tracking import machine
from experiments.tracking.machine import process_alive, process_state, process_tags
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import start_training


def test_two_machines_of_one_host_name_do_not_judge_each_others_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_machine_id", lambda: "this")
    mine = process_tags()
    assert mine["machine_id"] == "this"
    assert process_state(mine) is True
    assert process_state({**mine, "boot_id": "before the restart"}) is False
    other = {**mine, "machine_id": "other", "boot_id": "its own"}
    assert process_state(other) is None
    assert process_alive(other)
    older = {key: tag for key, tag in mine.items() if key != "machine_id"}
    assert process_state(older) is True
    monkeypatch.setattr(machine, "_machine_id", lambda: "")  # not readable here
    assert process_state(process_tags()) is True
    assert process_state(mine) is None


def test_two_containers_of_one_host_name_do_not_judge_each_others_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the network of the host: name, boot and machine are the same, ids of processes are not."""
    mine = process_tags()
    assert process_state(mine) is True
    monkeypatch.setattr(machine, "pid_namespace", lambda: "pid:[1]")
    assert process_state(mine) is None
    assert process_alive(mine)
    assert process_state({**mine, "boot_id": "before the restart"}) is False
    older = {key: tag for key, tag in mine.items() if key != "pid_namespace"}
    assert process_state(older) is True


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boot time, and with it the start time of all processes, moves with the clock."""
    mine = process_tags()
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 120)
    assert process_state(mine) is True
    assert process_state({**mine, "pid_ticks": "1"}) is False  # its id was given to another process
    older = {key: tag for key, tag in mine.items() if key != "pid_ticks"}
    assert process_state(older) is False  # of a journal before ticks were noted


@pytest.mark.slow
def test_sigterm_kills_the_run_on_the_way_out(root: Path) -> None:
    process, run_id = start_training(root)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    run = Tracker(root, "demo").client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 2.0}


def test_whether_a_process_lives_is_decided_on_its_own_host_only() -> None:
    mine = process_tags()
    assert process_alive(mine)
    assert process_alive({})
    assert process_alive({**mine, "host": "elsewhere", "pid": "1", "boot_id": "x"})
    assert not process_alive({**mine, "boot_id": "before the restart"})
    assert not process_alive({**mine, "pid_started": "1000", "pid_ticks": "10"})  # its id was given to another process
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not process_alive({**mine, "pid": str(ended.pid)})

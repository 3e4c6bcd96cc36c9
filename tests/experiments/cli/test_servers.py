"""Servers of web pages: their ports, and that they end with the process that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from experiments.cli.servers import ended_by_ctrl_c, free_port, is_taken, server, start
from experiments.common.errors import RunError
from tests.helpers.served_ui import freed


def test_no_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.cli.servers.PORTS", 1)
    refused = pytest.raises(RunError, match="are in use: give a free one with --port")
    with socket.create_server(("127.0.0.1", 0)) as taken, refused:
        free_port(taken.getsockname()[1])


def test_a_server_and_its_children_end_with_the_block() -> None:
    port = free_port(20_000)
    with server("files", port, f"sh -c '{sys.executable} -m http.server --bind 127.0.0.1 {port}; true'") as process:
        assert is_taken(port)
        assert process.poll() is None
    assert process.poll() is not None
    assert freed(port)


def test_a_server_ends_if_this_process_is_killed() -> None:
    port = free_port(21_000)
    line = f"{sys.executable} -m http.server --bind 127.0.0.1 {port}"
    block = f"with server('files', {port}, {line!r}):\n os.kill(os.getpid(), 9)"
    code = f"import os\nfrom experiments.cli.servers import server\n{block}"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL
    assert freed(port)


def test_a_server_that_does_not_start() -> None:
    with pytest.raises(RunError, match=r"(?s)toy does not answer at port 1; its last lines:.*no such store"):  # noqa: SIM117
        with server("toy", 1, "sh -c 'echo no such store; exit 3'"):
            pass


def test_a_port_that_another_program_got_in_between() -> None:
    """Two that start at once find the same free port. The other one's answer is not taken for the own."""
    port, running = free_port(22_000), list[subprocess.Popen[bytes]]()

    def line(number: int) -> str:
        return f"{sys.executable} -m http.server --bind 127.0.0.1 {number}"

    with contextlib.ExitStack() as servers, server("files", port, line(port)):
        with pytest.raises(RunError, match="files does not answer at port"):
            start(servers, running, "files", port, line, moves=False)
        moved = start(servers, running, "files", port, line)
        assert port < moved < port + 100
        assert len(running) == 1
        assert urllib.request.urlopen(f"http://127.0.0.1:{moved}/", timeout=5).status == 200


def test_the_second_ctrl_c_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    ended, before = [], signal.getsignal(signal.SIGINT)
    with ended_by_ctrl_c():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # while the servers are ended
            ended.append(True)
    assert ended == [True]
    assert capsys.readouterr().out == "ended\n"
    assert signal.getsignal(signal.SIGINT) is before

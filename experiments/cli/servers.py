"""Start servers of web pages on free ports of the loopback address, and end them with this process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from experiments.cli.console import say
from experiments.common.errors import RunError

HOST, PORTS = "127.0.0.1", 100  # so many ports are tried from the first on
START_SECONDS, END_SECONDS, POLL = 180.0, 10.0, 0.3


def start(
    servers: contextlib.ExitStack,
    running: list[subprocess.Popen[bytes]],
    name: str,
    port: int,
    command: Callable[[int], str],
    moves: bool = True,
) -> int:
    """Start a server, note its process, and return its port. moves: take the next port if another program got it."""
    try:
        running.append(servers.enter_context(server(name, port, command(port))))
    except RunError:
        if not moves or not is_taken(port):
            raise
        return start(servers, running, name, free_port(port + 1), command)
    return port


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """End the block at Ctrl-C, and ignore a second one: it would leave servers that nobody ends."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say("ended")
    finally:
        signal.signal(signal.SIGINT, before)


def free_port(first: int, given: int | None = None) -> int:
    """Return the port that was given, or the first free one. Raises RunError if the given one is taken."""
    if given is not None and is_taken(given):
        raise RunError(
            f"port {given} is in use. If that is this UI already, open http://{HOST}:{given}; else leave --port out: a "
            "free one is found"
        )
    found = given or next((port for port in range(first, first + PORTS) if not is_taken(port)), None)
    if found is None:
        raise RunError(f"the ports {first} to {first + PORTS - 1} are in use: give a free one with --port")
    return found


def is_taken(port: int) -> bool:
    """Whether a program of this machine has the port, or we may not have it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


@contextlib.contextmanager
def server(name: str, port: int, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server and yield its process when it answers; end it and its children after the block.

    It is in a group of its own: Ctrl-C of a terminal reaches this process alone. Raises RunError if it ends. The end of
    a pipe ends the group if this process is killed. The command is a shell's, without `env` or `exec`, since all users
    of the machine see the words that these get.
    """
    pipe, held = os.pipe()
    with tempfile.TemporaryFile() as output, contextlib.closing(os.fdopen(held, "wb")):
        line = f"{{ cat <&{pipe}; kill 0; }} & {command}"  # our own command, quoted
        process = subprocess.Popen(
            line, shell=True, stdout=output, stderr=output, start_new_session=True, pass_fds=(pipe,),
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # run no `flask.py` of the working directory
        )  # fmt: skip
        os.close(pipe)
        try:
            _wait_for_answer(name, port, process, output)
            yield process
        finally:
            _end(process)


def _wait_for_answer(name: str, port: int, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=5):
            if _listens(process, port):
                return
        time.sleep(POLL)
    output.seek(0)
    last = output.read().decode(errors="replace").strip().splitlines()[-5:]
    raise RunError(f"{name} does not answer at port {port}; its last lines:\n" + "\n".join(last))


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the server itself has the port: of two that start at once, the other one may answer there."""
    import psutil

    with contextlib.suppress(psutil.Error):
        own = psutil.Process(process.pid)
        sockets = (one for part in (own, *own.children(recursive=True)) for one in part.net_connections("inet"))
        return any(one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in sockets)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, by force if it takes too long, and by force what its group still has."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until one of the servers ends, and return 1; 0 at once if there is none."""
    while running:
        if ended := next((process for process in running if process.poll() is not None), None):
            say(f"a server ended with exit code {ended.returncode}")
            return 1
        time.sleep(POLL)
    return 0

"""The command `ui`: serve MLflow, and with --optuna optuna-dashboard, and link to what they show of each experiment."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from experiments.cli.console import Commands, add_root, say, show_rows
from experiments.common.errors import ConfigError, RunError, StudyError
from experiments.common.paths import default_root, short_path
from experiments.desk.overview import GAINS

HOST, OPTUNA_PORT, PORTS = "127.0.0.1", 8080, 100  # so many ports are tried from the first on
START_SECONDS, END_SECONDS, POLL = 180.0, 10.0, 0.3
DASHBOARD = "optuna_dashboard"


def add(commands: Commands) -> None:
    ui = commands.add_parser("ui", help="open MLflow on the comparison of all arms; --optuna: the studies too")
    ui.add_argument("--port", type=port_number, help="of MLflow (default: the first free one from 5000 on)")
    ui.add_argument("--optuna", action="store_true", help="open optuna-dashboard on the studies too")
    ui.add_argument("--no-browser", action="store_true", help="print the links only")
    add_root(ui)
    ui.set_defaults(command=ui_command)


def port_number(text: str) -> int:
    """Return a port that a user may choose."""
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535, for example 5001")
    return int(text)


def ui_command(args: argparse.Namespace) -> int:
    from experiments.tracking.machine import sigterm_raises
    from experiments.tracking.tracker import PORT, Tracker
    from experiments.tracking.uri import page

    root = args.root or default_root()
    dashboard = optuna_command(root) if args.optuna else None
    port = free_port(PORT, args.port)  # refused before the store is opened
    tracker = Tracker(root, "Default")
    with ended_by_ctrl_c(), sigterm_raises(), contextlib.ExitStack() as servers:
        running: list[subprocess.Popen[bytes]] = []
        address = page(tracker.remote or "")
        if tracker.serves_ui:
            port = start(servers, running, "MLflow", port, tracker.ui_command, moves=args.port is None)
            address = f"http://{HOST}:{port}"
        opened = mlflow_links(tracker, address)
        if dashboard:
            port = start(servers, running, "optuna-dashboard", free_port(OPTUNA_PORT), dashboard)
            optuna_links(root, f"http://{HOST}:{port}")
        if not args.no_browser and has_screen():
            webbrowser.open(opened)
        if running:
            say("Ctrl-C ends " + ("both" if len(running) > 1 else "it"))
        return wait(running)
    return 0


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


def optuna_command(root: Path) -> Callable[[int], str]:
    """Return a function that makes the shell command of optuna-dashboard for a port.

    Raises ConfigError if it is not installed, StudyError if no study was started.
    """
    from experiments.studies.artifacts import FOLDER
    from experiments.studies.locks import sqlite_file, sqlite_url
    from experiments.studies.storage import STORAGE, storage_url

    if importlib.util.find_spec(DASHBOARD) is None:
        raise ConfigError("--optuna needs optuna-dashboard, which is not installed: pip install optuna-dashboard")
    url = storage_url(root, None)
    if (file := sqlite_file(url)) and not file.is_file():
        raise StudyError(f"no study was started yet: there is no {short_path(file)}; leave --optuna out")
    own = f"os.environ.get({STORAGE!r}) or {sqlite_url(root.resolve() / 'optuna.db')!r}"  # may have a password
    code = f"import os, sys; from {DASHBOARD}._cli import main; sys.argv.insert(1, {own}); sys.exit(main())"
    python = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    pictures = root.resolve() / FOLDER
    shown = f" --artifact-dir {shlex.quote(str(pictures))}" if pictures.is_dir() else ""
    return lambda port: f"{python} --host {HOST} --port {port} --server wsgiref{shown}"


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
            line, shell=True, stdout=output, stderr=output, start_new_session=True, pass_fds=(pipe,)
        )
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


def mlflow_links(tracker: Any, address: str) -> str:
    """Prepare the view of each experiment that has runs, print links to them, and return the latest's.

    The view is an extra: if the store refuses it, a warning says why, and the pages open without it.
    """
    from experiments.tracking.store import last_line
    from experiments.tracking.view import latest_experiments, prepare, view_url

    say(f"MLflow: {address}")
    links = {}
    try:
        tracker.reap()
        for experiment in latest_experiments(tracker.client):
            prepare(tracker.client, experiment.experiment_id, GAINS)
            links[experiment.name] = [view_url(address, experiment.experiment_id, charts) for charts in (True, False)]
    except Exception as error:
        say(f"warning: links to the experiments could not be prepared ({last_line(error)}): choose one in MLflow")
    rows = [row for name, (charts, table) in links.items() for row in ((name, "charts", charts), ("", "table", table))]
    if rows:
        show_rows((), rows)
    return rows[0][2] if rows else address


def optuna_links(root: Path, address: str) -> None:
    """Print a link to each study."""
    import optuna

    from experiments.studies.storage import storage_url

    say(f"optuna-dashboard: {address}")
    storage = optuna.storages.RDBStorage(storage_url(root, None))
    studies = storage.get_all_studies()
    if studies:
        show_rows((), [(one.study_name, f"{address}/dashboard/studies/{one._study_id}") for one in studies])


def has_screen() -> bool:
    """Whether a browser can show a window: on Linux without a screen one of text would take the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

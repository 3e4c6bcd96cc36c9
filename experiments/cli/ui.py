"""The command `ui`: serve MLflow, and with --optuna optuna-dashboard, and link to what they show of each experiment."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.cli.console import Commands, add_root, say, show_rows
from experiments.cli.servers import HOST, ended_by_ctrl_c, free_port, start, wait
from experiments.common.commands import command
from experiments.common.errors import ConfigError, StudyError
from experiments.common.paths import default_root, short_path
from experiments.desk.overview import GAINS

OPTUNA_PORT = 8080
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
    from experiments.common.signals import sigterm_raises
    from experiments.tracking.tracker import PORT, Tracker
    from experiments.tracking.uri import page

    if args.port is not None and os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        raise ConfigError(f"--port {args.port} has no effect: MLFLOW_TRACKING_URI names a server that runs already")
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


def optuna_command(root: Path) -> Callable[[int], str]:
    """Return a function that makes the shell command of optuna-dashboard for a port.

    It opens one storage: that of the root, or of the first study if none is there. STUDY_STORAGE has the latter's URL
    from then on. Raises ConfigError if it is not installed, StudyError if no study was started.
    """
    from experiments.studies.artifacts import FOLDER
    from experiments.studies.locks import STORAGE, sqlite_file, sqlite_url
    from experiments.studies.storage import storage_url, storages

    if importlib.util.find_spec(DASHBOARD) is None:
        raise ConfigError("--optuna needs optuna-dashboard, which is not installed: pip install optuna-dashboard")
    url, studies = storage_url(root, None), [*storages(root).values()]
    if studies and not os.environ.get(STORAGE) and not (root / "optuna.db").is_file():
        url = os.environ[STORAGE] = studies[0]
    if (file := sqlite_file(url)) and not file.is_file():
        raise StudyError(f"no study was started yet: there is no {short_path(file)}; leave --optuna out")
    own = shlex.quote(sqlite_url(root.resolve() / "optuna.db"))  # that of STUDY_STORAGE may have a password
    python = f"{shlex.quote(sys.executable)} -m experiments.cli.dashboard {own}"
    pictures = root.resolve() / FOLDER
    shown = f" --artifact-dir {shlex.quote(str(pictures))}" if pictures.is_dir() else ""
    return lambda port: f"{python} --port {port}{shown}"


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
    """Print a link to each study, and the command that opens those in another storage."""
    import optuna

    from experiments.studies.locks import STORAGE, shown
    from experiments.studies.storage import storage_url, storages

    say(f"optuna-dashboard: {address}")
    url = storage_url(root, None)
    storage = optuna.storages.RDBStorage(url)
    studies = storage.get_all_studies()
    if studies:
        show_rows((), [(one.study_name, f"{address}/dashboard/studies/{one._study_id}") for one in studies])
    at: tuple[str | Path, ...] = () if root.resolve() == default_root().resolve() else ("--root", root)
    here = command("ui", "--optuna", *at)
    for name, own in storages(root).items():
        if own != url:
            say(f"{name} is in another storage: {STORAGE}={shlex.quote(shown(own))} {here} opens it")


def has_screen() -> bool:
    """Whether a browser can show a window: on Linux without a screen one of text would take the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

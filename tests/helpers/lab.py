"""JupyterLab as `make lab` starts it, in a small copy of the project, and a notebook that is open in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.browser import new_page

ROOT = Path(__file__).parents[2]
COPIED = ("Makefile", "pyproject.toml", "constraints.txt", ".gitignore", "notebooks")
TOKEN = "browser-test"
START = 90.0  # seconds
SETTINGS = {
    # cells that are out of sight stay in the page, where a test finds them
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def copied_project(folder: Path) -> Path:
    """Copy what `make lab` needs into a repository of its own: nothing that runs here may touch the project's files."""
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        ignored = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
        shutil.copytree(source, copy, ignore=ignored) if source.is_dir() else shutil.copy(source, copy)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def changed(project: Path) -> str:
    """Return what `git status` says of a copied project."""
    words = ["git", "status", "--porcelain"]
    return subprocess.run(words, cwd=project, check=True, capture_output=True, text=True).stdout


@contextmanager
def open_lab(project: Path, scratch: Path) -> Iterator[str]:
    """Yield the address of a lab that `make lab` has started. scratch: for its settings, so that no user's are read."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["make", "-C", str(project), "-o", ".venv/.installed", "lab", f"BIN={Path(sys.executable).parent}"]
    with (scratch / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            words, env=_environment(scratch, port), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, port, scratch / "lab.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):  # the lab ends its kernels at the first
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)


def _environment(scratch: Path, port: int) -> dict[str, str]:
    settings = scratch / "config" / "lab" / "user-settings" / "@jupyterlab"
    for name, values in SETTINGS.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    own = {"ServerApp": {"open_browser": False}}
    (scratch / "config" / "jupyter_server_config.json").write_text(json.dumps(own))
    return os.environ | {
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_PORT": str(port),
        "JUPYTER_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # the models are tiny
    }


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"the lab does not answer: {log.read_text()[-2000:]}")


class Notebook:
    """A notebook in a page of the lab. path: below the project's folder; empty: the one that the lab opens."""

    def __init__(self, browser: Any, lab: str, path: str) -> None:
        self.page, self.errors = new_page(browser), list[str]()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{lab}/{'lab/tree/' if path else ''}{path}?token={TOKEN}&reset")
        self.cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        self.cells.first.wait_for()
        self.wait_for_kernel()

    def wait_for_kernel(self, milliseconds: float = 120_000) -> None:
        """Wait until the kernel has nothing to do."""
        self.page.get_by_text("| Idle").wait_for(timeout=milliseconds)  # in the line at the bottom

    def menu(self, name: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=name, exact=True).first.click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

    def run_all(self) -> None:
        """Run all cells. `finished` waits for the end."""
        self.menu("Run", "Run All Cells")

    def finished(self, milliseconds: float = 180_000) -> None:
        """Wait until no cell waits or runs."""
        script = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
          .every(one => /^\\[\\d+\\]:$/.test(one.textContent.trim()))"""
        self.page.wait_for_function(script, timeout=milliseconds)

    def text(self, cell: int) -> str:
        """Return what a cell has written, as it is on the screen. cell: counted from 0, among those with code."""
        return str(self.cells.nth(cell).locator(".jp-OutputArea").inner_text())

    def add_cell(self, code: str) -> int:
        """Add a cell at the end, write code into it and run it. Returns its number."""
        count = self.cells.count()
        self.cells.last.locator(".jp-InputPrompt").click()
        self.page.keyboard.press("b")
        self.cells.nth(count).locator(".cm-content").click()
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Control+Enter")
        return int(count)

    def save(self) -> None:
        self.page.keyboard.press("Control+s")
        self.page.locator(".jp-mod-current.jp-mod-dirty").wait_for(state="hidden")

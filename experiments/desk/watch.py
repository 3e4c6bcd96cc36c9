"""Watch a run or a study, start one in a process of its own, and stop one. Works on what a shell started, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.commands import MODULE, command, own_modules, own_python
from experiments.common.errors import ConfigError, RunError, Stopped
from experiments.common.files import read_note, write_text
from experiments.common.paths import root_folder, short_path
from experiments.common.yaml_values import dump_yaml
from experiments.desk.live import Follower, Live, words_of
from experiments.tracking.journal import PATTERN, Journal
from experiments.tracking.machine import process_state

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig
    from experiments.studies.config import StudyConfig

Show = Callable[[Live], None]
STARTED = "started"  # folder below the root: the config and the output of each run that `start` began


def start(config: ExperimentConfig | StudyConfig, root: str | Path | None = None) -> Path:
    """Start a run or a study in a process of its own and return its folder. A study that runs already is joined.

    It goes on if the notebook or its kernel ends. What it prints is in ROOT/started/NAME.log, its config next to it.
    Raises RunError if it ends before it has begun.
    """
    root = root_folder(root)
    folder, word = _folder_of(config, root)
    file = root / STARTED / f"{folder.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, dump_yaml(config.to_dict()), private=word == "study")  # a study's storage may have a password
    print(command(word, file, "--root", root))
    words, places = [*own_python(MODULE), word, str(file), "--root", str(root)], os.environ | own_modules()
    log, before = file.with_suffix(".log"), _starts(folder)
    with log.open("ab") as output:  # the cell may be run again while the first process still writes there
        begun = output.tell()
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=places)
    while not (_runs(folder) if word == "study" else _starts(folder) != before):
        if process.poll() is not None:
            if process.returncode == 0:  # there was nothing left to do
                break
            raise RunError(f"the {word} ended before it began: {_reason(log, begun)}")
        time.sleep(0.2)
    return folder


def _folder_of(config: ExperimentConfig | StudyConfig, root: Path) -> tuple[Path, str]:
    """Return the folder, and the command that makes it."""
    from experiments.config import ExperimentConfig
    from experiments.runs.run import run_folder
    from experiments.studies.storage import study_folder

    if isinstance(config, ExperimentConfig):
        return run_folder(config, root), "run"
    return study_folder(root, config.name), "study"


def _runs(study: Path) -> bool:
    """Whether a process of this machine runs the study."""
    return bool(process_state(read_note(study / "mlflow.json").get("owner") or {}))


def stop(source: str | Path, root: str | Path | None = None) -> None:
    """Stop a run or a study of this machine: its step ends, and a checkpoint is saved. The same command goes on later.

    Raises RunError if it does not run here.
    """
    folder = Follower(str(source), root_folder(root)).folder
    owner = _owner(folder)
    if not owner or not process_state(owner):
        raise RunError(f"{folder.name} does not run on this machine: there is nothing to stop")
    os.kill(int(owner["pid"]), signal.SIGTERM)
    print(f"{folder.name} was asked to stop; the same command goes on: {_again(folder)}")


def watch(source: str | Path, root: str | Path | None = None, every: float = 2.0, show: Show | None = None) -> None:
    """Show how far a run or a study is until it ends, in a notebook as a picture that is renewed, else as lines.

    source: its folder, its name, or the beginning of one. every: seconds between two looks. show: gets each look, in
    place of the display. Interrupting the kernel stops the watching alone. In a notebook that, and a run that is
    stopped, end the cell with one line (Stopped): what follows must not go on without the run. What was shown last
    stays in a saved notebook: it needs no widget. Raises ConfigError for a name that is not there.
    """
    follower = _follower(source, root, every)
    with _display(follower) if show is None else contextlib.nullcontext(show) as shown:
        try:
            for _ in _looks(follower, shown):
                time.sleep(every)
        except Stopped:
            raise
        except KeyboardInterrupt:
            _end(f"no longer watched; it goes on. Look again: {command('show', follower.folder)}")


async def watch_async(
    source: str | Path, root: str | Path | None = None, every: float = 2.0, show: Show | None = None
) -> None:
    """Do what `watch` does, with a button that stops the run: `await watch_async(...)` in a cell of a notebook.

    A cell that awaits lets clicks in; one that only runs gets them when it has ended.
    """
    follower = _follower(source, root, every)
    with _display(follower, _stop_button(follower.folder)) if show is None else contextlib.nullcontext(show) as shown:
        try:
            for _ in _looks(follower, shown):
                await asyncio.sleep(every)
        except Stopped:
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):  # an interrupted kernel cancels what a cell awaits
            _end(f"no longer watched; it goes on. Look again: {command('show', follower.folder)}")


def _follower(source: str | Path, root: str | Path | None, every: float) -> Follower:
    if not 0 < every < 86_400:
        raise ConfigError(f"every={every}: give the seconds between two looks, for example 2")
    return Follower(str(source), root_folder(root))


def _looks(follower: Follower, shown: Show) -> Iterator[None]:
    """Show one look after the other, and yield between them, until the run has ended."""
    ran = False
    while (live := follower.look()).running:
        ran = True
        shown(live)
        yield
    shown(live)
    if ran and live.overview.status == "stopped" and _in_notebook():
        _end("stopped, with a checkpoint; the same cell goes on from there")


def _end(text: str) -> None:
    """Say why the watching ends: in a notebook the cell ends with it."""
    if _in_notebook():
        raise Stopped(text) from None
    print(text)


@contextlib.contextmanager
def _display(follower: Follower, button: Any = None) -> Iterator[Show]:
    """Yield what shows a look: in a notebook a picture above a button, else a line when something has changed."""
    if not _in_notebook():
        yield _Lines()
        return
    from IPython.display import HTML, display

    from experiments.desk.picture import html

    handle = display(HTML(""), display_id=True)
    place = display(button or HTML(""), display_id=True)
    try:
        yield lambda live: handle.update(HTML(html(live)))
    finally:
        place.update(HTML(""))  # a saved notebook could not draw the button


def _stop_button(folder: Path) -> Any:
    """Return a button that stops the run; None outside of a notebook."""
    if not _in_notebook():
        return None
    from ipywidgets import Button

    tip = "as Ctrl-C in its shell; the same command goes on later"
    button = Button(description="Stop the run", tooltip=tip, layout={"width": "auto"})
    button.on_click(lambda _: _stop_clicked(button, folder))
    return button


def _stop_clicked(button: Any, folder: Path) -> None:
    """Do what the button does, and show the line of Python that it equals."""
    button.disabled, button.description = True, f"stop({folder.name!r})"
    with contextlib.suppress(RunError):  # it ended in between
        stop(folder)


class _Lines:
    """Print a line when it says something new."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, live: Live) -> None:
        if (line := words_of(live)) != self.said:
            print(line, flush=True)
            self.said = line


def _owner(folder: Path) -> dict[str, str]:
    """Return the process that runs a run or a study, from its note or its journal; empty if nothing names one."""
    if owner := read_note(folder / "mlflow.json").get("owner"):
        return dict(owner)
    latest = max(folder.glob(PATTERN), key=lambda path: path.stat().st_mtime, default=None)
    begun = Journal(latest).last("start") if latest else None
    return dict(begun["tags"]) if begun else {}


def _starts(folder: Path) -> int:
    """Count how often a run was started or continued."""
    events = (event for path in folder.glob(PATTERN) for event, _ in Journal(path).read())
    return sum(event["event"] == "start" for event in events)


def _again(folder: Path) -> str:
    """Return the command that goes on."""
    study = (folder / "study.yaml").is_file()
    words = ["resume", folder.name] if study else ["run", folder / "config.yaml"]
    return command(*words, "--root", folder.parents[1])


def _reason(log: Path, begun: int) -> str:
    """Return the error in what a process printed, else its last line. begun: where that begins in the file."""
    text = log.read_bytes()[begun:].decode("utf-8", "replace").strip()
    error = text.rpartition("error: ")[2] if "error: " in text else text.rpartition("\n")[2]
    return " ".join(error.split()) or f"it wrote nothing to {short_path(log)}"


def _in_notebook() -> bool:
    """Whether the code runs in a kernel, which shows what `display` gets."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return bool(shell) and hasattr(shell, "kernel")

"""Watch a run or a study, start one in a process of its own, and stop one. Works on what a shell started, too."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from experiments.common.commands import command
from experiments.common.errors import ConfigError, RunError
from experiments.common.files import read_note, write_text
from experiments.common.paths import default_root, short_path
from experiments.common.yaml_values import dump_yaml
from experiments.desk.live import Follower, Live, values_of, words_of
from experiments.reporting.table import Table
from experiments.tracking.journal import PATTERN, Journal
from experiments.tracking.machine import process_state

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig
    from experiments.studies.config import StudyConfig

Show = Callable[[Live], None]
STARTED = "started"  # folder below the root: the config and the output of each run that `start` began
PLACES = {"loss": "{:.3f}", "gain": "{:+.2f}", "retention": "{:.2f}", "KL": "{:.3f}", "s/step": "{:.2f}"}
DPI = 120  # of the picture: a saved notebook stays small


def start(config: ExperimentConfig | StudyConfig, root: str | Path | None = None) -> Path:
    """Start a run or a study in a process of its own and return its folder. A study that runs already is joined.

    It goes on if the notebook or its kernel ends. What it prints is in ROOT/started/NAME.log, its config next to it.
    Raises RunError if it ends before it has begun.
    """
    root = (Path(root) if root else default_root()).resolve()
    folder, word = _folder_of(config, root)
    file = root / STARTED / f"{folder.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, dump_yaml(config.to_dict()), private=word == "study")  # a study's storage may have a password
    print(command(word, file, "--root", root))
    words = [sys.executable, "-m", "experiments.cli", word, str(file), "--root", str(root)]
    log, before = file.with_suffix(".log"), _starts(folder)
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    while not (_runs(folder) if word == "study" else _starts(folder) != before):
        if process.poll() is not None:
            if process.returncode == 0:  # there was nothing left to do
                break
            raise RunError(f"the {word} ended before it began: {_reason(log)}")
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
    folder = Follower(str(source), (Path(root) if root else default_root()).resolve()).folder
    owner = _owner(folder)
    if not owner or not process_state(owner):
        raise RunError(f"{folder.name} does not run on this machine: there is nothing to stop")
    os.kill(int(owner["pid"]), signal.SIGTERM)
    print(f"{folder.name} was asked to stop; the same command goes on: {_again(folder)}")


def watch(source: str | Path, root: str | Path | None = None, every: float = 2.0, show: Show | None = None) -> None:
    """Show how far a run or a study is until it ends, in a notebook as a picture that is renewed, else as lines.

    source: its folder, its name, or the beginning of one. every: seconds between two looks. show: gets each look, in
    place of the display. In a notebook a button stops the run; interrupting the kernel stops the watching alone. What
    was shown last stays in a saved notebook: it needs no widget. Raises ConfigError for a name that is not there.
    """
    if not 0 < every < 86_400:
        raise ConfigError(f"every={every}: give the seconds between two looks, for example 2")
    follower = Follower(str(source), (Path(root) if root else default_root()).resolve())
    with _display(follower) if show is None else contextlib.nullcontext(show) as shown:
        try:
            while (live := follower.look()).running:
                shown(live)
                time.sleep(every)
            shown(live)
        except KeyboardInterrupt:
            print(f"no longer watched; it goes on. Look again: {command('show', follower.folder)}")


@contextlib.contextmanager
def _display(follower: Follower) -> Any:
    """Yield what shows a look: in a notebook a picture and a button, else a line when something has changed."""
    if not _in_notebook():
        yield _Lines()
        return
    from IPython.display import HTML, display
    from ipywidgets import Button

    button = Button(description="Stop the run", tooltip="as Ctrl-C in its shell; the same command goes on later")
    button.on_click(lambda _: _stop_clicked(follower.folder))
    handle = display(HTML(""), display_id=True)
    place = display(button, display_id=True)
    try:
        yield lambda live: handle.update(HTML(html(live)))
    finally:
        place.update(HTML(""))  # a saved notebook could not draw the button
        button.close()


def _stop_clicked(folder: Path) -> None:
    """Do what the button does, and show the line of Python that it equals."""
    print(f">>> stop({short_path(folder)!r})")
    try:
        stop(folder)
    except RunError as error:  # it ended in between
        print(error)


class _Lines:
    """Print a line when it says something new."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, live: Live) -> None:
        if (line := words_of(live)) != self.said:
            print(line, flush=True)
            self.said = line


def html(live: Live) -> str:
    """Write one look as HTML that needs no other file: a line, a table of the arms, the picture, the report's path."""
    from experiments.desk.picture import live_figure
    from experiments.reporting.page import few_colours, image_bytes

    picture = base64.b64encode(few_colours(image_bytes(live_figure(live), "png", dpi=DPI))).decode()
    report = live.overview.folder / "report.html"
    rows = [{name: _text(name, value) for name, value in values_of(arm).items()} for arm in live.arms]
    parts = [
        Markup("<p><b>{}</b></p>").format(words_of(live)),
        Table.of(rows).html(),
        Markup('<p><img alt="loss, retention against gain, KL, layers" style="max-width: 100%; width: 1000px" ')
        + Markup('src="data:image/png;base64,{}"></p>').format(picture),
        Markup("<p>report: {}</p>").format(short_path(report)) if report.is_file() else "",
    ]
    return str(Markup("\n").join(parts))


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    return PLACES[name].format(value) if name in PLACES else str(value)


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


def _reason(log: Path) -> str:
    """Return the error in what a process printed, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    error = text.rpartition("error: ")[2] if "error: " in text else text.rpartition("\n")[2]
    return " ".join(error.split()) or f"it wrote nothing to {short_path(log)}"


def _in_notebook() -> bool:
    """Whether the code runs in a kernel, which shows what `display` gets."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return bool(shell) and hasattr(shell, "kernel")

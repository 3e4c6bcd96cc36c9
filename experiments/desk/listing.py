"""List what was run below a root, and open any of it: its words, its arms, its picture, and links to the rest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.common.commands import command
from experiments.common.files import read_note
from experiments.common.paths import root_folder
from experiments.common.result_folders import MEASUREMENT, find
from experiments.desk.explore import Picture, forgetting_hover
from experiments.desk.grid import Grid
from experiments.desk.live import Follower, words_of
from experiments.desk.overview import Overview, age, arm_text, figure, gain, read_all, read_config
from experiments.desk.search import StudyView
from experiments.records import ArmResult, read_records
from experiments.reporting.plots.caption import SHARES, asked_in, caption
from experiments.reporting.plots.multiples import gained_kept_figure
from experiments.reporting.table import Row, Table
from experiments.reporting.tables import arms_table
from experiments.runs.result_file import whole_results

UNITS = {"study": "trials", "run": "arms", "soften": "points"}  # what is counted; else models
HEAD = ("name", "kind", "status", "done", "best gain", "retention", "of arm", "age", "report")


class Results:
    """All runs, studies and measurements below a root, the latest first. trials: those of studies too."""

    def __init__(self, root: str | Path | None = None, trials: bool = False) -> None:
        self.root = root_folder(root)
        self.found = read_all(self.root, trials)

    @property
    def names(self) -> list[str]:
        """The names that `open_result` takes."""
        return [one.folder.name for one in self.found]

    def choose(self) -> None:
        """Show a menu of the names: a choice opens the result, below the line of Python that it equals."""
        from ipywidgets import interact

        interact(self._open, name=["", *self.names])

    def _open(self, name: str) -> None:
        from IPython.display import display

        if name:
            print(f">>> open_result({name!r}, root)")
            display(open_result(name, self.root))

    def _repr_html_(self) -> str:
        if not self.found:
            return str(Markup("<p>nothing was run yet: <code>{}</code></p>").format(command("run", "quickstart")))
        table = Table("", HEAD, tuple(map(_row, self.found)))
        return str(Grid(table, choosers=("kind", "status")).html() + servers())


class Opened:
    """A run, a study or a measurement as a notebook shows it: parts, one below the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for part in self.parts:
            display(part)


class Html:
    """Text that a notebook shows as HTML."""

    def __init__(self, text: Markup) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return str(self.text)


def open_result(source: str | Path, root: str | Path | None = None) -> Opened:
    """Show a run, study or measurement: how far it is, its arms or trials, its picture, and links.

    source: its folder, its name, or the beginning of one. Raises ConfigError.
    """
    base = root_folder(root)
    folder = find(str(source), base)
    if (folder / MEASUREMENT).is_file():
        text = (folder / "report.txt").read_text(encoding="utf-8") if (folder / "report.txt").is_file() else ""
        return Opened([Html(Markup("<pre>{}</pre>").format(text)), Html(links(folder, base))])
    base = folder.parents[1]  # the root that it is in, whose store has it
    words = Html(Markup("<p><b>{}</b></p>").format(words_of(Follower(str(folder), base).look())))
    if (folder / "study.yaml").is_file():
        view = StudyView(folder, base)
        parts = [view.front()] if len(view.study.objectives) > 1 and any(t.values for t in view.trials) else []
        return Opened([words, view, *parts, Html(links(folder, base))])
    return Opened([words, *_arms(folder), Html(links(folder, base))])


def links(folder: Path, root: Path) -> Markup:
    """Link to the report and to the run's page in MLflow, as far as they are there, and say how MLflow is started."""
    found = [_link(folder / "report.html", "report")] if (folder / "report.html").is_file() else []
    if url := mlflow_url(folder, root):
        found.append(Markup('<a href="{}">this {} in MLflow</a>').format(url, "study" if _is_study(folder) else "run"))
    return Markup("<p>{}</p>").format(Markup(" &middot; ").join(found)) + servers()


def servers() -> Markup:
    """Say which commands open MLflow and optuna-dashboard on all of it."""
    return Markup(
        "<p>MLflow: <code>{}</code> &middot; with the studies in optuna-dashboard: <code>{}</code></p>"
    ).format(command("ui"), command("ui", "--optuna"))


def mlflow_url(folder: Path, root: Path) -> str:
    """Return the address of a run or study in MLflow, empty if the store does not have it. Nothing is written."""
    run_id = read_note(folder / "mlflow.json").get("run_id")
    if not run_id or not ((root / "mlflow.db").is_file() or os.environ.get("MLFLOW_TRACKING_URI")):
        return ""
    from experiments.tracking.store import TrackingStore
    from experiments.tracking.tracker import PORT

    with contextlib.suppress(Exception):  # the store is away, or got no such run yet
        store = TrackingStore(root, os.environ.get("MLFLOW_TRACKING_URI"))
        experiment = store.client.get_run(run_id).info.experiment_id
        server = store.uri.rstrip("/") if store.uri.startswith("http") else f"http://127.0.0.1:{PORT}"
        return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"
    return ""


def _arms(folder: Path) -> list[Any]:
    """Return the table and the picture of the arms that have a result."""
    results: list[ArmResult] = whole_results(sorted(folder.glob("arms/*/result.json")))
    if not results:
        return []
    base = folder / "base" / "items.jsonl"
    asked = asked_in(read_config(folder / "config.yaml"), read_records(base) if base.is_file() else ())
    hover = forgetting_hover(results, caption(asked, SHARES, "in brackets"))
    picture = Picture(gained_kept_figure(results, folder.name, asked), hover)
    return [Grid(arms_table(results)), picture]


def _row(one: Overview) -> Row:
    best = one.best or {"scorecard": {}}
    nats = "" if "gain" in best["scorecard"] else " nats"
    report = one.folder / "report.html"
    done = f"{one.done}/{'?' if one.total is None else one.total} {UNITS.get(one.kind, 'models')}"
    figures = (_number(gain(best), "+.2f", nats), _number(figure(best, "retention"), ".2f"))
    return (
        one.folder.name, one.kind, one.status, done, *figures, arm_text(one.best) or one.remark,
        age(one.updated), _link(report, "open") if report.is_file() else "",
    )  # fmt: skip


def _link(path: Path, text: str) -> Markup:
    """Link to a file by its path from the notebook: JupyterLab opens it, and a moved project keeps its links."""
    return Markup('<a href="{}">{}</a>').format(os.path.relpath(path), text)


def _is_study(folder: Path) -> bool:
    return (folder / "study.yaml").is_file()


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"

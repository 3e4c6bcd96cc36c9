"""Look at a study while it runs and after: its trials, the front, what matters, and the run and answers of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.common.errors import ConfigError, StudyError
from experiments.common.paths import root_folder, short_path
from experiments.common.result_folders import find
from experiments.desk.answers import Answers, answers
from experiments.desk.explore import Json, Picture, marks, page_of, titled
from experiments.desk.front import ClickedFront
from experiments.desk.grid import Grid
from experiments.records import Estimate
from experiments.reporting.plots.caption import SHARES, caption
from experiments.reporting.table import Table
from experiments.reporting.text import figure_text, hover_number
from experiments.scorecard import mean_card
from experiments.scorecard.figures import FIGURES
from experiments.studies.config import Objective
from experiments.studies.load import load_study
from experiments.studies.queue import Store
from experiments.studies.report.pictures import study_asked
from experiments.studies.report.plots import importance_figure, objective_label, pareto_figure, trial_colour
from experiments.studies.space import picks_words, short_names
from experiments.studies.storage import storage_url
from experiments.studies.trial_results import result_of
from experiments.studies.trials import Trial

SHOWN = ("gain", "new_nll_drop", "retention", "kl", "nfr")  # figures of a trial's row, those that it has


class StudyView:
    """A study as its storage has it now. Each property reads it again, so a cell that runs again shows new trials.

    source: the study's folder, its name, or the beginning of one. Raises ConfigError if there is no such study.
    """

    def __init__(self, source: str | Path, root: str | Path | None = None) -> None:
        self.folder = find(str(source), root_folder(root))
        self.root = self.folder.parents[1]  # the folder's own: another root may have a study of this name
        if not (self.folder / "study.yaml").is_file():
            raise ConfigError(f"{self.folder.name} is no study: open it with open_result, or name a study")
        file = load_study(self.folder / "study.yaml")
        self.store = Store(storage_url(self.root, file.storage), name=file.name)
        self.study = self.store.config  # the file may be edited: its objectives would name the values of others

    @property
    def trials(self) -> list[Trial]:
        return self.store.trials()

    @property
    def _broken(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "complete" and not trial.feasible]

    @property
    def table(self) -> Table:
        """A row for each trial; a star: on the front, or the best; a cross: it breaks a constraint."""
        front, rows, short = set(self.store.front()), [], short_names(self.study.search)
        broken = {trial.number for trial in self._broken}
        for trial in self.trials:
            mark = " *" if trial.number in front else " x" if trial.number in broken else ""
            row: dict[str, Any] = {"trial": f"{trial.number}{mark}", "state": trial.state}
            row |= {short[key]: _short(pick) for key, pick in trial.picks.items()}
            if trial.runs:
                card = _means(trial)
                row |= {FIGURES[name].title: figure_text(card, name) for name in SHOWN if name in card}
            rows.append(row)
        return Table.of(rows)

    def _repr_html_(self) -> str:
        done = sum(trial.state == "complete" for trial in self.trials)
        words = Markup("<b>{}</b> {}<br>{} trials, {} complete. *: on the front. {}Intervals: 95 %, {}")
        seeds = len(self.study.seeds)
        of = "first seed" if seeds == 1 else f"of questions and the spread of {seeds} seeds, of which figures are means"
        broken = "x: breaks a constraint. " if self._broken else ""
        above = words.format(self.study.name, self.study.question, len(self.trials), done, broken, of)
        return str(Grid(self.table, above).html())

    def front(self) -> Picture:
        """Draw all trials by the first two objectives; under the mouse a trial's picks. Raises StudyError for one."""
        objectives = self.study.objectives
        if len(objectives) < 2:
            raise StudyError(
                f"{self.study.name} has one objective, so no front: its best trial has a star in the table"
            )
        trials, front = self.trials, self.store.front()
        asked = study_asked(self.study, trials, self.root)
        still, rests = pareto_figure(trials, front, objectives, asked), caption(asked, SHARES, "")
        return Picture(still, front_hover(trials, front, objectives, rests))

    def clicked(self, count: int = 3) -> ClickedFront:
        """Draw the same with points that are buttons: a click shows a trial's picks, its run and its flips.

        count: of each kind of flip. Raises StudyError for a study of one objective.
        """
        if len(self.study.objectives) < 2:
            raise StudyError(f"{self.study.name} has one objective, so no front: use view.answers(NUMBER)")
        return ClickedFront(self, count)

    def importances(self) -> Picture | None:
        """Draw how much of each objective's variance a dimension explains. None if too few trials are complete."""
        found = self.store.importances()
        done = sum(trial.state == "complete" for trial in self.trials)
        return Picture(importance_figure(found, done, len(self.study.seeds))) if found else None

    def trial(self, number: int) -> Trial:
        """Return a trial. Raises StudyError if it has no run yet."""
        found = next((trial for trial in self.trials if trial.number == number), None)
        if found is None or not found.runs:
            known = ", ".join(str(trial.number) for trial in self.trials if trial.runs) or "none yet"
            raise StudyError(f"trial {number} has no run; those that have: {known}")
        return found

    def run(self, number: int) -> Path:
        """Return the folder of a trial's run, of the first seed."""
        return self.root / str(self.trial(number).runs[0]["folder"])

    def answers(self, number: int) -> Answers:
        """Return the answers that a trial lost, won and kept."""
        return answers(self.run(number), self.root)

    def words(self, number: int) -> str:
        """Say in one line what a trial picked, what it gave, and where its run is."""
        trial = self.trial(number)
        card = _means(trial)
        figures = ", ".join(f"{FIGURES[n].title} {figure_text(card, n)}" for n in SHOWN if n in card)
        return (
            f"trial {number}, {picks_words(self.study.search, trial.picks)}: {figures}; {short_path(self.run(number))}"
        )


def _means(trial: Trial) -> dict[str, Estimate]:
    """Return the figures of a trial as means over its seeds, as its values are."""
    return mean_card([result_of(run).scorecard for run in trial.runs])


def front_hover(
    trials: Sequence[Trial], front: Sequence[int], objectives: Sequence[Objective], rests: str = ""
) -> Json:
    """Draw all complete trials by the first two objectives; a point has its number, its picks and its values.

    rests: what the figure rests on (`caption`), for the title.
    """
    done = [trial for trial in trials if trial.values and len(trial.values) > 1]
    traces = [
        _points("on the front", [t for t in done if t.number in front], objectives, "diamond"),
        _points("other trials", [t for t in done if t.number not in front and t.feasible], objectives, "circle"),
        _points("breaks a constraint", [t for t in done if not t.feasible], objectives, "x"),
    ]
    names = [objective_label(objective).replace("\n", " ") for objective in objectives[:2]]
    title = titled(f"{len(done)} trials", rests)
    return page_of([trace for trace in traces if trace["x"]], title, xaxis=names[0], yaxis=names[1])


def _points(name: str, trials: Sequence[Trial], objectives: Sequence[Objective], symbol: str) -> Json:
    colours, text, found = [], [], [trial.values or [] for trial in trials]
    short = short_names(dict.fromkeys(key for trial in trials for key in trial.picks))
    for trial, values in zip(trials, found, strict=True):
        colours.append(trial_colour(trial))
        picks = "<br>".join(f"{short[key]}: {_short(pick)}" for key, pick in trial.picks.items())
        figures = "<br>".join(f"{o.figure}: {hover_number(v)}" for o, v in zip(objectives, values, strict=True))
        text.append(f"trial {trial.number}<br>{picks}<br>{figures}")
    return marks(name, [v[0] for v in found], [v[1] for v in found], colours, text, symbol)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

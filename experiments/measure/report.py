"""Write what a measurement found: words, tables, report.html, figures.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common.errors import CompareError
from experiments.common.files import write_json, write_text
from experiments.common.printable import without_codes
from experiments.common.yaml_values import dump_yaml
from experiments.comparison.compare import compare
from experiments.comparison.folders import ComparedRun
from experiments.comparison.inputs import read_runs
from experiments.measure.plot import steps_figure
from experiments.measure.session import Session
from experiments.measure.words import sentence, without_words
from experiments.records import ArmResult, Estimate
from experiments.reporting.answers import Turned, cells, lost_answers, question_texts
from experiments.reporting.details import alignment_pictures, further_table
from experiments.reporting.differences import differences_table
from experiments.reporting.page import inline_svg, write_page
from experiments.reporting.plots.caption import Asked, asked_of
from experiments.reporting.plots.multiples import gained_kept_figure
from experiments.reporting.table import Table
from experiments.reporting.tables import asked_once, retention_table
from experiments.reporting.text import figure_text
from experiments.scorecard.figures import FIGURES, GAINS

SHOWN = (*GAINS, "retention", "nfr", "nfr_above_floor", "pfr", "kl", "perplexity_drift", "retention_instructions")


@dataclass(frozen=True)
class Report:
    """What is printed, and where the page is. lost: by model the answers that it lost most clearly."""

    words: list[str]
    tables: list[Table]
    lost: Mapping[str, list[Turned]]
    notes: list[str]
    page: Path

    @property
    def all_tables(self) -> list[Table]:
        """The tables of figures, and one of the answers that each model lost."""
        return [*self.tables, *_lost_tables(self.lost)]

    def text(self) -> str:
        """Return words, tables, lost answers and notes for a terminal."""
        parts = ["\n".join(self.words), *(table.text() for table in self.tables[:1])]
        parts += [table.text() for table in _lost_tables(self.lost)]
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])


def write_measurement(
    session: Session,
    results: Sequence[ArmResult],
    failed: Mapping[str, str],
    left_out: Mapping[str, Mapping[str, str]],
    remarks: Sequence[str] = (),
) -> Report:
    """Write report.html, report.txt and figures.json to the folder of a measurement. Returns what they say."""
    runs = _runs(session, results)
    questions = question_texts(session.suites.suites.values())
    words = [sentence(r, runs[r.arm].base, runs[r.arm].after) for r in results]
    words += [f"{name} could not be measured: {why}" for name, why in failed.items()]
    lost = {r.arm: lost_answers(runs[r.arm].base, runs[r.arm].after, questions) for r in results}
    tables, notes = _tables(session, results, list(runs.values()))
    notes += filter(None, (without_words(name, run.base, run.after) for name, run in runs.items()))
    notes = list(dict.fromkeys([*notes, *remarks]))  # the comparison of several has their remarks too
    notes += [f"A/A floor: {said}"] if (said := asked_once(results)) else []
    notes += [*_left_out(left_out), *session.remarks(), session.arithmetic]
    page = session.folder / "report.html"
    report = Report(words, tables, {name: found for name, found in lost.items() if found}, notes, page)
    write_json(session.folder / "figures.json", {r.arm: plain_figures(r.scorecard) for r in results})
    write_text(session.folder / "report.txt", without_codes(report.text()) + "\n")
    write_page(page, "measure", **_values(session, report, results, runs))
    return report


def _left_out(suites: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Say which suites each model cannot have."""
    return [f"{name}: suite {suite} is left out: {why}" for name, s in suites.items() for suite, why in s.items()]


def models_table(results: Sequence[ArmResult]) -> Table:
    """Show one row a model, one column a figure that some model has."""
    figures = [FIGURES[name] for name in SHOWN if any(name in r.scorecard for r in results)]
    rows = tuple((r.arm, *(figure_text(r.scorecard, figure.name) for figure in figures)) for r in results)
    hints = {figure.title: figure.meaning for figure in figures}
    return Table("Figures", ("model", *(figure.title for figure in figures)), rows, hints=hints)


def _tables(
    session: Session, results: Sequence[ArmResult], runs: Sequence[ComparedRun]
) -> tuple[list[Table], list[str]]:
    """Make the tables; the first is that of the figures. Returns notes of the comparison too."""
    found = [models_table(results), retention_table(results), further_table(results)]
    notes: list[str] = []
    if len(runs) > 1:
        try:
            comparison = compare(runs, draws=session.config.evaluation.bootstrap, seed=session.config.seed)
            differing = comparison.differences
            found.append(differences_table(differing, comparison.reference, "model") if differing else None)
            notes = [note for note in comparison.notes if ": left out: " not in note]
        except CompareError as error:
            notes = [f"the models are not compared with each other: {error}"]
    return [table for table in found if table], notes


def _lost_tables(lost: Mapping[str, Sequence[Turned]]) -> list[Table]:
    head = ("task", "question", "right", "before", "after")
    return [
        Table(
            f"Lost most clearly by {name}",
            (f"lost by {name}", *head[1:]),
            tuple(cells(one) for one in found),
        )
        for name, found in lost.items()
    ]


def _runs(session: Session, results: Sequence[ArmResult]) -> dict[str, ComparedRun]:
    """Read the records of these models as `compare` reads them; the folder may hold others of earlier calls."""
    if not results:
        return {}
    found = {run.name: run for run in read_runs([str(session.folder)])}
    return {r.arm: found[r.arm] for r in results}


def _values(
    session: Session, report: Report, results: Sequence[ArmResult], runs: Mapping[str, ComparedRun]
) -> dict[str, Any]:
    shown = [FIGURES[name] for name in SHOWN if any(name in r.scorecard for r in results)]
    base = session.base.name
    return {
        "question": f"What did {', '.join(r.arm for r in results) or 'the models'} forget of {base}?",
        "config": session.config,
        "yaml": dump_yaml(session.config.to_dict()),
        "words": report.words,
        "tables": report.all_tables,
        "pictures": [
            (title, inline_svg(figure)) for title, figure in _pictures(results, runs, asked_of(session.base_records()))
        ],
        "notes": report.notes,
        "figures": shown,
        "date": f"{datetime.now():%d %B %Y, %H:%M}",
    }


def _pictures(results: Sequence[ArmResult], runs: Mapping[str, ComparedRun], asked: Asked) -> list[tuple[str, Figure]]:
    found = []
    if any(name in r.scorecard for r in results for name in GAINS):
        found.append(("Gain and retention", gained_kept_figure(results, "What is gained, what is kept", asked)))
    if any(len(r.trajectory) > 2 for r in results):
        found.append(("Figures by step", steps_figure(results, asked)))
    return found + alignment_pictures({name: run.after for name, run in runs.items()})


def plain_figures(card: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Return figures as JSON can hold them: what is not a number is null."""
    return {
        name: {end: value if value is None or math.isfinite(value) else None for end, value in asdict(e).items()}
        for name, e in card.items()
    }

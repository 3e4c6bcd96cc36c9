"""The report of a run, as files: report.html, report.md, table.csv, forgetting.png."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.commands import command
from experiments.common.files import write_bytes, write_text
from experiments.common.yaml_values import dump_yaml
from experiments.config import ExperimentConfig
from experiments.records import ArmResult, Estimate
from experiments.reporting.doubts import doubt
from experiments.reporting.page import image_bytes, inline_svg, write_page
from experiments.reporting.plots.caption import Asked, asked_in
from experiments.reporting.plots.multiples import gained_kept_figure
from experiments.reporting.summary import claims
from experiments.reporting.table import Table
from experiments.reporting.tables import (
    COSTS,
    arms_table,
    columns_of,
    failure_text,
    retention_table,
    table_csv,
)
from experiments.reporting.text import figure_text, label
from experiments.scorecard import SignificantPairs

BASE = {"new_accuracy": "new task", "kept_accuracy": "kept tasks"}  # figures of the base model that are shown


def write_report(
    folder: Path,
    config: ExperimentConfig,
    base: Mapping[str, Estimate],
    results: Sequence[ArmResult],
    ui_command: str,
    notes: Sequence[str] = (),
    details: Sequence[Table] = (),
    figures: Sequence[tuple[str, Figure]] = (),
    significant: SignificantPairs | None = None,
    links: Sequence[tuple[str, str]] = (),
    asked: Asked | None = None,
) -> Path:
    """Write report.html (needs no other file), report.md, table.csv and forgetting.png. Returns report.html.

    base: the figures of the base model. ui_command: opens the MLflow UI. details: further tables
    (`experiments.reporting.details`). figures: further pictures with their titles, in the HTML page alone. significant:
    the pairs of arms that differ (`experiments.scorecard.significant_pairs`); default: those whose intervals do not
    overlap. links: the address of each arm's run, by its name. asked: how many questions were; default: by the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = asked or asked_in(config.to_dict())
    title = f"Learning {config.data.label}: what is gained, what is kept"
    figure = gained_kept_figure(results, title, asked)
    write_bytes(folder / "forgetting.png", image_bytes(figure, "png"))
    write_text(folder / "table.csv", table_csv(base, results))
    values = {
        "question": f"What does {config.base_model} forget when it learns {config.data.label}?",
        "config": config,
        "yaml": dump_yaml(config.to_dict()),
        "base": [f"{title} {figure_text(base, name)}" for name, title in BASE.items() if name in base],
        "tiles": _tiles(asked, base, results),
        "claims": [(one.text, doubt(one, _questions(asked))) for one in claims(results, significant)],
        "image": inline_svg(figure),
        "table": arms_table(results, significant),
        "columns": (*columns_of(results), *COSTS),
        "meanings": [f"{figure.title}: {figure.meaning}." for figure in columns_of(results)],
        "by_task": retention_table(results),
        "failed": [(label(r), failure_text(r)) for r in results if r.status != "finished"],
        "notes": notes,
        "details": details,
        "figures": [(title, inline_svg(picture)) for title, picture in figures],
        "command": command("run", folder / "config.yaml", "--fresh"),
        "ui_command": ui_command,
        "links": links,
        "date": f"{datetime.now():%d %B %Y, %H:%M}",
    }
    write_page(folder / "report.md", "report", **values)
    return write_page(folder / "report.html", "report", **values)


def _questions(asked: Asked) -> dict[str, int]:
    """Return how many questions the figures of claims are measured on, as far as it is known."""
    parts = {"gain": "new", "retention": "kept"}
    return {figure: asked.counts[part] for figure, part in parts.items() if part in asked.counts}


def _tiles(asked: Asked, base: Mapping[str, Estimate], results: Sequence[ArmResult]) -> list[tuple[str, str]]:
    tiles = []
    for name, title in BASE.items():
        if name in base:
            value, _, interval = figure_text(base, name).partition(" ")
            tiles.append((value, f"base model on the {title} {interval}"))
    ends = Counter(r.status for r in results if r.status != "finished")
    arms = f"arm{'s' if len(results) != 1 else ''} (method at a learning rate)"
    tiles.append((f"{len(results)}", arms + "".join(f", {n} {status}" for status, n in ends.items())))
    items = " + ".join(f"{asked.counts.get(part, 0):,}" for part in ("new", "kept"))
    return [*tiles, (items, "questions: new task + kept tasks")]

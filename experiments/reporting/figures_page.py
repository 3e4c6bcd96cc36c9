"""The table of all figures as a page of the documentation."""

from __future__ import annotations

from experiments.reporting.table import Table
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES, NOTATION

HEADINGS = {  # by suite, in the order of the page
    "new": "New task (suite `new`)",
    "kept": "Kept tasks (suite `kept`)",
    "drift": "KL to the base model (suite `drift`)",
    "text": "General text (suite `text`)",
    "instructions": "Instructions (suite `instructions`)",
    "alignment": "Hidden states and weights (suite `alignment`)",
    "floor": "A/A floor (suite `kept`, asked twice)",
    "stream": "Stream of tasks (suite `new` after each stage)",
    "comparison": "Several evaluations or several arms",
    "cost": "Cost of training",
    "posthoc": "Operations on trained weights",
}


def figures_markdown(level: int = 3) -> str:
    """Write all figures as Markdown: the notation, then a heading of this level and a table for each suite."""
    parts = [f"Notation. {NOTATION}"]
    for suite, heading in HEADINGS.items():
        rows = tuple(_row(figure) for figure in FIGURES.values() if figure.suite == suite)
        table = Table(heading, ("title", "figure", "formula", "unit", "better", "meaning"), rows)
        parts += [f"{'#' * level} {heading}", table.markdown()]
    return "\n\n".join(parts)


def _row(figure: Figure) -> tuple[str, ...]:
    better = figure.better or "-"
    return figure.title, f"`{figure.name}`", f"`{figure.formula}`", figure.unit or "-", better, figure.meaning

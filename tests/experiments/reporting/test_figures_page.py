"""The page of all figures."""

from __future__ import annotations

from experiments.reporting.figures_page import HEADINGS, figures_markdown
from experiments.scorecard.figures import FIGURES


def test_every_figure_is_on_the_page_below_its_suite() -> None:
    parts = figures_markdown(level=2).split("\n## ")[1:]
    assert [part.splitlines()[0] for part in parts] == list(HEADINGS.values())
    shown = {}
    for suite, part in zip(HEADINGS, parts, strict=True):
        rows = [line.replace("\\|", "/").strip("| ").split(" | ") for line in part.splitlines()[4:] if line]
        shown |= {row[1].strip("`"): (suite, row) for row in rows}
    assert shown.keys() == FIGURES.keys()
    suite, row = shown["retention"]
    meaning = "accuracy on the kept tasks, after / before; 1 forgets nothing"
    assert (suite, row) == ("kept", ["retention", "`retention`", "`a_K / a0_K`", "share", "higher", meaning])

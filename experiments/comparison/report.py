"""A comparison as text and as files: compare.md (or .html), compare.png, compare.csv."""

from __future__ import annotations

import base64
import csv
import io
import math
from pathlib import Path

from experiments.common.files import write_text
from experiments.comparison.compare import Comparison
from experiments.comparison.plot import comparison_figure
from experiments.records import Estimate
from experiments.reporting.page import image_bytes, page_environment
from experiments.reporting.text import figure_text, with_interval
from experiments.scorecard.figures import FIGURES

Table = list[list[str]]  # the first row is the head


def figures_table(comparison: Comparison) -> Table:
    """One row a run, one column a figure."""
    names = comparison.figures()
    rows = [["run", *(FIGURES[name].title for name in names)]]
    for entry, card in comparison.cards.items():
        rows.append([entry, *(figure_text(card, name) for name in names)])
    return rows


def differences_table(comparison: Comparison) -> Table:
    """One row a run and figure: the difference to the reference, its p and Holm's."""
    rows = [[f"less {comparison.reference}", "figure", "difference", "p", "p (Holm)"]]
    for d in comparison.differences:
        text = with_interval(d.value, True, (3, 2, 2))
        rows.append([d.name, FIGURES[d.figure].title, text, _p(d.p), _p(d.p_holm)])
    return rows


def format_comparison(comparison: Comparison) -> str:
    """For the terminal."""
    parts = [_aligned(figures_table(comparison))]
    if comparison.differences:
        parts.append(_aligned(differences_table(comparison)))
    return "\n\n".join([*parts, "\n".join(_remarks(comparison))])


def write_comparison(comparison: Comparison, out: Path, page: bool = False) -> Path:
    """Write compare.md (compare.html, which needs no other file, where `page`), compare.png and compare.csv into the
    folder `out`. Returns the text's path."""
    out.mkdir(parents=True, exist_ok=True)
    figure = comparison_figure(comparison, "Runs on their common items")
    figure.savefig(out / "compare.png", dpi=160)
    write_text(out / "compare.csv", comparison_csv(comparison))
    if page:
        path, text = out / "compare.html", _html(comparison, image_bytes(figure, "svg"))
    else:
        path, text = out / "compare.md", _markdown(comparison)
    write_text(path, text)
    return path


def comparison_csv(comparison: Comparison) -> str:
    """kind (figure or difference), run, figure, value, low, high, p, p_holm; every figure of every card."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "run", "figure", "value", "low", "high", "p", "p_holm"])
    for run, card in comparison.cards.items():
        writer.writerows(["figure", run, name, *_numbers(value), None, None] for name, value in card.items())
    for d in comparison.differences:
        writer.writerow(["difference", d.name, d.figure, *_numbers(d.value), d.p, d.p_holm])
    return text.getvalue()


def _markdown(comparison: Comparison) -> str:
    parts = ["# Runs on their common items", _pipes(figures_table(comparison)), "![figures](compare.png)"]
    if comparison.differences:
        parts += [f"## Differences to {comparison.reference}", _pipes(differences_table(comparison))]
    return "\n\n".join([*parts, "\n".join(f"- {remark}" for remark in _remarks(comparison))]) + "\n"


def _html(comparison: Comparison, svg: bytes) -> str:
    tables = [("", figures_table(comparison))]
    if comparison.differences:
        tables.append((f"Differences to {comparison.reference}", differences_table(comparison)))
    template = page_environment().get_template("compare.html.j2")
    return template.render(tables=tables, image=base64.b64encode(svg).decode(), remarks=_remarks(comparison))


def _remarks(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{suite} {n}" for suite, n in comparison.items.items() if n)
    remarks = [f"Items in common: {counts}."] if counts else []
    if comparison.matched_gain is not None:
        remarks.append(
            f"Retention at matched gain is read off each trajectory at a gain of {comparison.matched_gain:.3f}, the "
            "highest that all reach that gain; where a run was evaluated once, on a straight line from the base."
        )
    if "average_harmonic" in comparison.figures():
        remarks.append(f"Harmonic average: of retention and of the gain over that of {comparison.reference}.")
    if comparison.differences:
        remarks.append(
            "Brackets: 95 % intervals; differences are paired by question; Holm's p is over the runs of one figure."
        )
    return [*remarks, *comparison.notes]


def _aligned(rows: Table) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _pipes(rows: Table) -> str:
    cells = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def _numbers(value: Estimate) -> tuple[float, float | None, float | None]:
    return value.value, value.low, value.high


def _p(p: float) -> str:
    return "n/a" if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")

"""A comparison as text and as files: compare.md (or .html), compare.png, compare.csv."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.comparison.compare import Comparison
from experiments.plots.comparison import TITLES, comparison_figure
from experiments.records import Estimate, write_text
from experiments.summary import RATE, Places, with_interval

PLACES: dict[str, Places] = {"kl": (3, 2, 1), "kl_new": (3, 2, 1), "perplexity_drift": (2, 2, 1)}
SIGNED = ("gain", "new_nll_drop", "perplexity_drift")
Table = list[list[str]]  # the first row is the head


def figures_table(comparison: Comparison) -> Table:
    """One row a run, one column a figure."""
    names = comparison.figures()
    rows = [["run", *(TITLES[name] for name in names)]]
    for entry, card in comparison.cards.items():
        rows.append([entry, *(with_interval(card.get(n), n in SIGNED, PLACES.get(n, RATE)) for n in names)])
    return rows


def differences_table(comparison: Comparison) -> Table:
    """One row a run and figure: the difference to the reference, its p and Holm's."""
    rows = [[f"less {comparison.reference}", "figure", "difference", "p", "p (Holm)"]]
    for d in comparison.differences:
        text = with_interval(d.value, True, (3, 2, 2))
        rows.append([d.name, TITLES[d.figure], text, _p(d.p), _p(d.p_holm)])
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
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        path, text = out / "compare.html", _html(comparison, svg.getvalue())
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


def _html(comparison: Comparison, svg: str) -> str:
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:32px auto;color:#1d2430}"
        "table{border-collapse:collapse;font-size:14px;margin:16px 0}svg{max-width:100%;height:auto}"
        "th,td{padding:5px 10px;border-bottom:1px solid #e3e7ec;text-align:left}"
    )
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in _remarks(comparison))
    parts = [_rows(figures_table(comparison)), svg[svg.index("<svg") :]]
    if comparison.differences:
        parts += [f"<h2>Differences to {html.escape(comparison.reference)}</h2>", _rows(differences_table(comparison))]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{style}</style>'
    return f"{head}<h1>Runs on their common items</h1>{''.join(parts)}<ul>{remarks}</ul></html>\n"


def _remarks(comparison: Comparison) -> list[str]:
    counts = ", ".join(f"{suite} {n}" for suite, n in comparison.items.items() if n)
    remarks = [f"Items in common: {counts}."] if counts else []
    if comparison.matched_gain is not None:
        remarks.append(
            f"Retention at matched gain is read off each trajectory at a gain of {comparison.matched_gain:.3f}, the "
            "highest that all runs reach."
        )
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


def _rows(rows: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[1:])}</table>"


def _numbers(value: Estimate) -> tuple[float, float | None, float | None]:
    return value.value, value.low, value.high


def _p(p: float) -> str:
    return "n/a" if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")

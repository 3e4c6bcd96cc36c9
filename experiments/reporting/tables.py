"""The tables of arms: for the terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.records import ArmResult, Estimate
from experiments.reporting.text import figure_text, gain_name, rate_text
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES, shown

WIDTH = 100  # columns of a terminal


def columns_of(results: Sequence[ArmResult]) -> tuple[Figure, ...]:
    """List the figures in the table of these arms: the gain that they have, of answers or of texts, then the others."""
    return (FIGURES[gain_name(results)], *(figure for figure in shown("run") if figure.suite != "cost"))


def format_table(results: Sequence[ArmResult]) -> str:
    """The terminal's table, at most 100 columns wide unless names are long. A failed arm shows its reason."""
    columns = columns_of(results)
    head = ["arm", "lr", *(column.title for column in columns), "tok/s", "GB"]
    rows = [_cells(result, columns) for result in results if result.status == "finished"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    names = [(r.arm, rate_text(r.learning_rate)) for r in results]
    widths[:2] = [max([w, *(len(name[i]) for name in names)]) for i, w in enumerate(widths[:2])]
    between = 2 if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else 1

    def line(cells: Sequence[str]) -> str:
        left, right = cells[:-2], cells[-2:]
        padded = [c.ljust(w) for c, w in zip(left, widths, strict=False)]
        padded += [c.rjust(w) for c, w in zip(right, widths[-2:], strict=True)]
        return (" " * between).join(padded).rstrip()

    lines = [line(head), "-" * (sum(widths) + between * (len(widths) - 1))]
    for result in results:
        if result.status == "finished":
            lines.append(line(_cells(result, columns)))
        else:
            arm, rate = result.arm.ljust(widths[0]), rate_text(result.learning_rate).ljust(widths[1])
            lines.append(_cut(f"{arm}{' ' * between}{rate}{' ' * between}{failure_text(result)}", WIDTH))
    return "\n".join(lines)


def markdown_table(results: Sequence[ArmResult]) -> str:
    """The same table in Markdown, for report.md and the note of an MLflow run."""
    columns = columns_of(results)
    head = ["arm", "learning rate", *(column.title for column in columns), "tokens/s", "memory, GB"]
    rows = [head]
    for result in results:
        cells = _cells(result, columns)
        if result.status == "failed":
            cells = [*cells[:2], failure_text(result), *[""] * (len(head) - 3)]
        rows.append([plain(cell) for cell in cells])
    return markdown_rows(rows)


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def table_csv(base: Mapping[str, Estimate], results: Sequence[ArmResult]) -> str:
    """Every figure of every arm: name, name_low, name_high; costs as cost_name. The base model is the first row."""
    rows: list[dict[str, Any]] = [{"arm": "base", **flat_figures(base)}]
    for r in results:
        named = {"arm": r.arm, "method": r.method, "learning_rate": r.learning_rate, "status": r.status}
        costs = {f"cost_{name}": value for name, value in r.cost.items()}
        rows.append({**named, "reason": r.reason, "steps": r.steps, **flat_figures(r.scorecard), **costs})
    names = dict.fromkeys(name for row in [*rows[1:], rows[0]] for name in row)
    return csv_text(rows, list(names))


def csv_text(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Rows as CSV with a head of these names; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat_figures(figures: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Columns of a table: NAME, NAME_low, NAME_high for each figure."""
    return {
        f"{name}{end}": value
        for name, e in figures.items()
        for end, value in (("", e.value), ("_low", e.low), ("_high", e.high))
    }


def _cells(result: ArmResult, columns: Sequence[Figure]) -> list[str]:
    figures = [figure_text(result.scorecard, column.name) for column in columns]
    return [result.arm, rate_text(result.learning_rate), *figures, *cost_cells(result)]


def cost_cells(result: ArmResult) -> list[str]:
    """Tokens per second and GB of memory."""
    speed, memory = result.cost.get("tokens_per_s"), result.cost.get("peak_memory_gb")
    return [
        f"{speed:.0f}" if speed is not None and math.isfinite(speed) else "-",
        f"{memory:.1f}" if memory is not None and math.isfinite(memory) else "-",
    ]


def failure_text(result: ArmResult) -> str:
    """Why and when an arm failed."""
    after = f" after step {result.steps}" if result.steps else ""
    return f"failed{after}: {result.reason or 'no reason was recorded'}"


def plain(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _cut(text: str, width: int) -> str:
    text = text if "\n" not in text else text.split("\n", 1)[0] + " ..."
    return text if len(text) <= width else text[: width - 3] + "..."

"""The tables of arms: figures and costs, retention by kept task, and all of it as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.records import MEASURED, ArmResult, Estimate
from experiments.reporting.summary import tied_best
from experiments.reporting.table import Cell, Row, Table
from experiments.reporting.text import figure_text, gain_name, label, rate_text, with_interval
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES, FORMS, shown
from experiments.scorecard.pairwise import SignificantPairs

WIDTH = 100  # columns of a terminal
COSTS = tuple(figure for figure in shown("run") if figure.suite == "cost")
BY_TASK, FLOOR_BY_TASK = FIGURES["retention/TASK"], FIGURES["floor_retention/TASK"]


def columns_of(results: Sequence[ArmResult]) -> tuple[Figure, ...]:
    """List the figures in the table of these arms: the gain that they have, of answers or of texts, then the others."""
    return (FIGURES[gain_name(results)], *(figure for figure in shown("run") if figure not in COSTS))


def arms_table(
    results: Sequence[ArmResult],
    significant: SignificantPairs | None = None,
    columns: Sequence[Figure] | None = None,
    costs: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Make the main table: arm, learning rate, figures, costs. One that did not finish shows its reason instead.

    significant: see `tied_best`, which marks the best. columns: the figures (default: `columns_of`). costs: further
    numbers, a cell per arm by title, before speed and memory.
    """
    columns = columns_of(results) if columns is None else columns
    more = costs or {}
    best = {figure.name: tied_best(results, figure.name, significant) for figure in columns}
    head = ("arm", "lr", *(figure.title for figure in columns), *more, *(figure.title for figure in COSTS))
    marks = {(i, j + 2): 'class="best"' for i, result in enumerate(results) for j, figure in enumerate(columns)
             if any(result is tied for tied in best[figure.name])}  # fmt: skip
    rows = tuple(_row(result, columns, [cells[i] for cells in more.values()]) for i, result in enumerate(results))
    hints = {figure.title: figure.meaning for figure in (*columns, *COSTS)}
    return Table("Figures", head, rows, floor_note(results), len(more) + len(COSTS), hints, marks)


def floor_note(results: Sequence[ArmResult]) -> str:
    """Say the A/A floor of these arms' base, to be read next to their retention; empty if it was not measured."""
    card: Mapping[str, Estimate] = next((r.scorecard for r in results if "floor_nfr" in r.scorecard), {})
    known = {"retention": "floor_retention", "nfr": "floor_nfr"}
    texts = [f"{FIGURES[name].title} {figure_text(card, floor)}" for name, floor in known.items() if floor in card]
    said = f"A/A floor, the base model against itself in other words: {', '.join(texts)}."
    return " ".join(filter(None, (said, asked_once(results)))) if texts else ""


def asked_once(results: Sequence[ArmResult]) -> str:
    """Say which kept answers the A/A floor is not of, since they were not asked in other words; empty without any."""
    card: Mapping[str, Estimate] = next((r.scorecard for r in results if "floor_nfr" in r.scorecard), {})
    tasks = [f"/{task}" for task in kept_tasks(results)]
    families = {"task": tasks, "form": [f"_{form}" for form in FORMS]}
    twice = {name.removeprefix("floor_") for name in card if name.startswith("floor_retention")}
    parts = [
        f"{kind} {end[1:]}"
        for kind, ends in families.items()
        for end in ends
        if f"retention{end}" in card and f"retention{end}" not in twice and any(f"retention{e}" in twice for e in ends)
    ]
    return f"It is of what was asked twice, as flips above it are: not of {', '.join(parts)}." if parts else ""


def format_table(results: Sequence[ArmResult]) -> str:
    """Write the main table for a terminal, at most 100 columns wide unless names are long, and the A/A floor."""
    table = arms_table(results)
    return "\n".join([table.text(WIDTH), *([f"\n{table.note}"] if table.note else [])])


def kept_tasks(results: Sequence[ArmResult]) -> list[str]:
    """List the kept tasks that have a retention of their own, in the order of the scorecard."""
    names = dict.fromkeys(name for r in results for name in r.scorecard if name.startswith(BY_TASK.prefix))
    return [name.removeprefix(BY_TASK.prefix) for name in names]


def retention_table(results: Sequence[ArmResult]) -> Table | None:
    """Make the table of retention by kept task, tinted in HTML; None if no task has a retention of its own."""
    names = [BY_TASK.prefix + task for task in kept_tasks(results)]
    arms = [r for r in results if r.status == "finished" and r.scorecard]
    if not names:
        return None
    rows: tuple[Row, ...] = tuple(_retentions(label(r), r, names) for r in arms)
    note = "Orange: less is kept than the base model had; white: as much; blue: more."
    floors = [FLOOR_BY_TASK.prefix + task for task in kept_tasks(results)]
    if asked_twice := next((r for r in arms if any(name in r.scorecard for name in floors)), None):
        rows += (_retentions("base, in other words", asked_twice, floors),)
        note += " Last row: the base model against itself, the same questions asked in other words (the A/A floor)."
    marks = {(i, j + 1): f'style="background: {tint(r.scorecard[name].value)}"'
             for i, r in enumerate(arms) for j, name in enumerate(names) if name in r.scorecard}  # fmt: skip
    head = ("arm", *(task.replace("_", " ") for task in kept_tasks(results)))
    return Table("Retention by kept task", head, rows, note, marks=marks)


def _retentions(name: str, result: ArmResult, figures: Sequence[str]) -> Row:
    return (name, *(with_interval(result.scorecard.get(one), BY_TASK.signed, BY_TASK.places) for one in figures))


def tint(retention: float) -> str:
    """Choose the background of a cell: white at 1, orange if less is kept, blue if more; full at .5 and 1.5."""
    if not math.isfinite(retention):
        return "#f1f3f5"
    strength = min(1.0, abs(retention - 1) / 0.5)
    full = (230, 126, 34) if retention < 1 else (52, 120, 190)
    mixed = (round(255 + (c - 255) * 0.75 * strength) for c in full)
    return "#" + "".join(f"{c:02x}" for c in mixed)


def table_csv(base: Mapping[str, Estimate], results: Sequence[ArmResult]) -> str:
    """Write every figure of every arm: NAME, NAME_low, NAME_high, and costs as cost_NAME. The first row is the base."""
    rows: list[dict[str, Cell]] = [{"arm": "base", **flat_figures(base)}]
    for r in results:
        named: dict[str, Cell] = {
            "arm": r.arm,
            "method": r.method,
            "learning_rate": None if r.method == MEASURED else r.learning_rate,
            "status": r.status,
        }
        rows.append({**named, "reason": r.reason, "steps": r.steps, **flat_figures(r.scorecard), **flat_costs(r)})
    return Table.of(rows, dict.fromkeys(name for row in [*rows[1:], rows[0]] for name in row)).csv()


def flat_figures(figures: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Spread figures over the columns NAME, NAME_low, NAME_high."""
    return {
        f"{name}{end}": value
        for name, e in figures.items()
        for end, value in (("", e.value), ("_low", e.low), ("_high", e.high))
    }


def flat_costs(result: ArmResult) -> dict[str, float]:
    """Spread costs over the columns cost_NAME."""
    return {f"cost_{name}": value for name, value in result.cost.items()}


def failure_text(result: ArmResult) -> str:
    """Say why and when an arm failed or was pruned."""
    reason, after = result.reason or "no reason was recorded", f" after step {result.steps}" if result.steps else ""
    return reason if reason.startswith("pruned at step") else f"{result.status}{after}: {reason}"


def cost_text(result: ArmResult, figure: Figure) -> str:
    """Write a cost with the decimals of its figure; `-` if it is not known."""
    value = result.cost.get(figure.name.removeprefix("cost/"))
    return "-" if value is None or not math.isfinite(value) else f"{value:.{figure.places[-1]}f}"


def _row(result: ArmResult, columns: Sequence[Figure], more: Sequence[str]) -> Row:
    named = (result.arm, "-" if result.method == MEASURED else rate_text(result.learning_rate))
    if result.status != "finished":
        return (*named, failure_text(result))
    figures = (figure_text(result.scorecard, figure.name) for figure in columns)
    return (*named, *figures, *more, *(cost_text(result, figure) for figure in COSTS))

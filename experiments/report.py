"""The report of a run: a table for the terminal, and files: report.html, report.md, table.csv, forgetting.png."""

from __future__ import annotations

import base64
import csv
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib.figure import Figure

from experiments.config import ExperimentConfig
from experiments.details import Table
from experiments.plots.forgetting import forgetting_figure
from experiments.records import ArmResult, Estimate, write_text
from experiments.summary import RATE, Places, gain_name, label, number, rate_text, summary, tied_best, with_interval

WIDTH = 100  # columns of a terminal
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Column:
    """A figure of the scorecard in the tables. signed: shown with its sign. places: see `summary.number`."""

    name: str
    title: str
    meaning: str
    better: str
    signed: bool = False
    places: Places = RATE

    def text(self, result: ArmResult) -> str:
        return with_interval(result.scorecard.get(self.name), self.signed, self.places)


GAIN = Column("gain", "gain", "accuracy on the new task, after - before", "higher", True)
NLL_DROP = Column(
    "new_nll_drop",
    "gain, nats",
    "negative log-likelihood of the new texts, before - after, nats per token",
    "higher",
    True,
    (3, 2, 2),
)
COLUMNS = (
    GAIN,
    Column("retention", "retention", "accuracy on the kept tasks, after / before; 1 forgets nothing", "higher"),
    Column("nfr", "neg. flips", "share of kept answers that were right before and are wrong after", "lower"),
    Column("kl", "KL", "KL(base || tuned) on replies of the base model, nats per token", "lower", places=(3, 2, 1)),
    Column(
        "perplexity_drift",
        "ppl drift",
        "negative log-likelihood of general text, after - before, nats per token",
        "lower",
        True,
        (2, 2, 1),
    ),
)


def columns_of(results: Sequence[ArmResult]) -> tuple[Column, ...]:
    """The columns for these arms: the gain is the one that was measured, of a task with answers or of texts."""
    return (NLL_DROP, *COLUMNS[1:]) if gain_name(results) == NLL_DROP.name else COLUMNS


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
            lines.append(_cut(f"{arm}{' ' * between}{rate}{' ' * between}{_failure(result)}", WIDTH))
    return "\n".join(lines)


def markdown_table(results: Sequence[ArmResult]) -> str:
    """The same table in Markdown, for report.md and the note of an MLflow run."""
    columns = columns_of(results)
    head = ["arm", "learning rate", *(column.title for column in columns), "tokens/s", "memory, GB"]
    rows = [head, ["---"] * len(head)]
    for result in results:
        cells = _cells(result, columns)
        if result.status == "failed":
            cells = [*cells[:2], _failure(result), *[""] * (len(head) - 3)]
        rows.append([_plain(cell).replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_report(
    folder: Path,
    config: ExperimentConfig,
    base: Mapping[str, Estimate],
    results: Sequence[ArmResult],
    ui_command: str,
    notes: Sequence[str] = (),
    details: Sequence[Table] = (),
    figures: Sequence[tuple[str, Figure]] = (),
) -> Path:
    """Write report.html (needs no other file), report.md, table.csv and forgetting.png. Returns report.html.

    base: the base model's figures (`new_accuracy`, `kept_accuracy`). ui_command: what opens the MLflow UI. details:
    further tables (`experiments.details`). figures: further pictures with their titles, in the page alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    question = f"What does {config.base_model} forget when it learns {config.data.label}?"
    figure = forgetting_figure(results, f"Learning {config.data.label}: what is gained, what is kept")
    (folder / "forgetting.png").write_bytes(image_bytes(figure, "png"))
    write_text(folder / "table.csv", table_csv(base, results))
    commands = [f"python -m experiments.cli run {shlex.quote(shown_path(folder / 'config.yaml'))} --fresh"]
    words, columns = summary(results), columns_of(results)
    failed = [(label(r), _failure(r)) for r in results if r.status == "failed"]
    markdown = _markdown(question, base, results, words, failed, [*commands, ui_command], notes, details)
    write_text(folder / "report.md", markdown)
    page = page_environment().get_template("report.html.j2")
    text = page.render(
        question=question,
        config=config,
        yaml=yaml.safe_dump(config.to_dict(), sort_keys=False),
        base=base,
        words=words,
        image=base64.b64encode(image_bytes(figure, "svg")).decode(),
        columns=columns,
        results=results,
        best={column.name: tied_best(results, column.name, column.better == "higher") for column in columns},
        tasks=_tasks(results),
        failed=failed,
        notes=notes,
        details=details,
        figures=[(title, base64.b64encode(image_bytes(picture, "svg")).decode()) for title, picture in figures],
        commands=commands,
        ui_command=ui_command,
        date=f"{datetime.now():%d %B %Y, %H:%M}",
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def table_csv(base: Mapping[str, Estimate], results: Sequence[ArmResult]) -> str:
    """Every figure of every arm: name, name_low, name_high; costs as cost_name. The base model is the first row."""
    rows: list[dict[str, Any]] = [{"arm": "base", **flat_figures(base)}]
    for r in results:
        named = {"arm": r.arm, "method": r.method, "learning_rate": r.learning_rate, "status": r.status}
        costs = {f"cost_{name}": value for name, value in r.cost.items()}
        rows.append({**named, "reason": r.reason, "steps": r.steps, **flat_figures(r.scorecard), **costs})
    names = dict.fromkeys(name for row in [*rows[1:], rows[0]] for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
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


def _cells(result: ArmResult, columns: Sequence[Column]) -> list[str]:
    figures = [column.text(result) for column in columns]
    return [result.arm, rate_text(result.learning_rate), *figures, *_costs(result)]


def _costs(result: ArmResult) -> list[str]:
    speed, memory = result.cost.get("tokens_per_s"), result.cost.get("peak_memory_gb")
    return [
        f"{speed:.0f}" if speed is not None and math.isfinite(speed) else "-",
        f"{memory:.1f}" if memory is not None and math.isfinite(memory) else "-",
    ]


def _failure(result: ArmResult) -> str:
    after = f" after step {result.steps}" if result.steps else ""
    return f"failed{after}: {result.reason or 'no reason was recorded'}"


def _tasks(results: Sequence[ArmResult]) -> list[str]:
    """Kept tasks with a retention of their own, in the scorecard's order."""
    return list(
        dict.fromkeys(n.removeprefix("retention/") for r in results for n in r.scorecard if n.startswith("retention/"))
    )


def _markdown(
    question: str,
    base: Mapping[str, Estimate],
    results: Sequence[ArmResult],
    words: Sequence[str],
    failed: Sequence[tuple[str, str]],
    commands: Sequence[str],
    notes: Sequence[str],
    details: Sequence[Table],
) -> str:
    before = ", ".join(
        f"{title} {with_interval(base[name])}"
        for name, title in (("new_accuracy", "new task"), ("kept_accuracy", "kept tasks"))
        if name in base
    )
    parts = [f"# {question}", " ".join(words)]
    parts += [f"Accuracy of the base model: {before}."] if before else []
    parts += [
        markdown_table(results),
        "Brackets: 95 % intervals. " + " ".join(f"{c.title}: {c.meaning}." for c in columns_of(results)),
    ]
    parts += ["![retention against gain](forgetting.png)"]
    for table in details:
        parts += [f"## {table.title}", table.markdown(), table.note]
    if failed:
        parts += ["## Arms that failed", "\n".join(f"- {name}: {_plain(reason)}" for name, reason in failed)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Again", "```bash\n" + "\n".join(commands) + "\n```", "The second command opens the MLflow UI."]
    return "\n\n".join(parts) + "\n"


def page_environment() -> jinja2.Environment:
    """The templates of reports, with the filters that write figures."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters: dict[str, Callable[..., Any]] = {
        "label": label,
        "number": number,
        "rate": rate_text,
        "costs": _costs,
        "failure": _failure,
        "interval": _interval,
        "tint": tint,
    }
    environment.filters.update(filters)
    return environment


def _interval(estimate: Estimate, places: Places = RATE) -> str:
    """The bracket alone; empty where there is none."""
    return with_interval(estimate, places=places).partition(" ")[2]


def tint(retention: float) -> str:
    """Background of a heat-table cell: white at 1, orange where less is kept, blue where more; full at .5 and 1.5."""
    if not math.isfinite(retention):
        return "#f1f3f5"
    strength = min(1.0, abs(retention - 1) / 0.5)
    full = (230, 126, 34) if retention < 1 else (52, 120, 190)
    mixed = (round(255 + (c - 255) * 0.75 * strength) for c in full)
    return "#" + "".join(f"{c:02x}" for c in mixed)


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file. kind: `svg`, the same bytes at any time of day, or `png`, at 200 dpi."""
    data = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(data, format=kind, dpi=200, metadata=metadata)
    return data.getvalue()


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, width: int) -> str:
    text = text if "\n" not in text else text.split("\n", 1)[0] + " ..."
    return text if len(text) <= width else text[: width - 3] + "..."


def shown_path(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

"""The report of a run, as files: report.html, report.md, table.csv, forgetting.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from experiments.common.commands import command
from experiments.common.files import write_text
from experiments.config import ExperimentConfig
from experiments.records import ArmResult, Estimate
from experiments.reporting.details import Table
from experiments.reporting.page import image_bytes, inline_svg, page_environment
from experiments.reporting.plots.forgetting import forgetting_figure
from experiments.reporting.summary import summary, tied_best
from experiments.reporting.tables import columns_of, failure_text, markdown_table, plain, table_csv
from experiments.reporting.text import label, with_interval
from experiments.scorecard import SignificantPairs


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
) -> Path:
    """Write report.html (needs no other file), report.md, table.csv and forgetting.png. Returns report.html.

    base: the base model's figures (`new_accuracy`, `kept_accuracy`). ui_command: what opens the MLflow UI. details:
    further tables (`experiments.reporting.details`). figures: further pictures with their titles, in the page alone.
    significant: the pairs of arms that differ (`experiments.scorecard.significant_pairs`); without it, those whose
    intervals do not overlap.
    """
    folder.mkdir(parents=True, exist_ok=True)
    question = f"What does {config.base_model} forget when it learns {config.data.label}?"
    figure = forgetting_figure(results, f"Learning {config.data.label}: what is gained, what is kept")
    (folder / "forgetting.png").write_bytes(image_bytes(figure, "png"))
    write_text(folder / "table.csv", table_csv(base, results))
    commands = [command("run", folder / "config.yaml", "--fresh")]
    words, columns = summary(results, significant), columns_of(results)
    failed = [(label(r), failure_text(r)) for r in results if r.status == "failed"]
    markdown = _markdown(question, base, results, words, failed, [*commands, ui_command], notes, details)
    write_text(folder / "report.md", markdown)
    page = page_environment().get_template("report.html.j2")
    text = page.render(
        question=question,
        config=config,
        yaml=yaml.safe_dump(config.to_dict(), sort_keys=False),
        base=base,
        words=words,
        image=inline_svg(figure),
        columns=columns,
        results=results,
        best={column.name: tied_best(results, column.name, significant) for column in columns},
        tasks=_tasks(results),
        failed=failed,
        notes=notes,
        details=details,
        figures=[(title, inline_svg(picture)) for title, picture in figures],
        commands=commands,
        ui_command=ui_command,
        date=f"{datetime.now():%d %B %Y, %H:%M}",
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


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
        parts += ["## Arms that failed", "\n".join(f"- {name}: {plain(reason)}" for name, reason in failed)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Again", "```bash\n" + "\n".join(commands) + "\n```", "The second command opens the MLflow UI."]
    return "\n\n".join(parts) + "\n"

"""The report of a study: report.html (needs no other file), report.md, table.csv and the figures as PNG."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import ConfigError
from experiments.common.files import write_text
from experiments.reporting.page import image_bytes, inline_svg, page_environment
from experiments.reporting.summary import summary, tied_best
from experiments.reporting.tables import columns_of, csv_text, flat_figures, markdown_rows, markdown_table
from experiments.scorecard.figures import FIGURES
from experiments.studies.laws.report import mixture_laws
from experiments.studies.posthoc import posthoc_rows
from experiments.studies.report.paper import at_each, compared, sentences
from experiments.studies.report.pictures import Picture, pictures
from experiments.studies.report.readings import matched_gain, pareto_volume
from experiments.studies.report.table import picks_text
from experiments.studies.selection import ReportRow, choose, significant_arms
from experiments.studies.storage import command_line, public_yaml, study_folder
from experiments.studies.trials import Trial, died

if TYPE_CHECKING:
    from experiments.studies.queue import Store


def write_study_report(store: Store, root: Path, folder: Path) -> Path:
    """Write the report of what the study has so far; returns report.html. Needs item records for held-out choices."""
    study, trials = store.config, store.trials()
    arms = choose(study, trials, root)
    arms += posthoc_rows(study, arms, root)
    results = [arm.result for arm in arms]
    paper = compared(arms) if study.report.paper else None
    significant = significant_arms(arms, root)
    words = summary(results, significant, len(study.seeds))
    words += [*sentences(arms), *at_each(study, trials)] if study.report.paper else []
    words += filter(None, [matched_gain(arms, root), pareto_volume(store, trials)])
    shown = columns_of(results)
    shown = (*shown[:2], FIGURES["kept_accuracy"], *shown[2:])
    drawn, notes = pictures(store, arms, trials, root, paper), _notes(store, arms, trials, root)
    if study.report.law:
        said, laws = mixture_laws(study, arms, root)
        words += said
        drawn += [
            (f"law-{i}", f"The mixture law of {name}", "Loss against the share of new text; the lines are fits.", law)
            for i, (name, law) in enumerate(laws.items())
        ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, _, figure in drawn:
        (folder / f"{name}.png").write_bytes(image_bytes(figure, "png"))
    write_text(folder / "table.csv", _csv(arms))
    if folder.resolve() != study_folder(root, study.name).resolve():  # there it lies, with the storage's password
        write_text(folder / "study.yaml", public_yaml(study))
    values = {
        "study": study,
        "question": study.question or f"What does {study.name} show?",
        "setup": _setup(store),
        "tiles": _tiles(store, arms, trials),
        "words": words,
        "arms": arms,
        "paper": paper,
        "failed": [(f"trial {t.number} ({picks_text(t)})", t.reason) for t in trials if t.state == "failed"],
        "notes": notes,
        "reading": _reading(store, arms),
        "commands": _commands(store, root, folder),
    }
    write_text(folder / "report.md", _markdown(values, drawn, results))
    environment = page_environment()
    environment.filters |= {"trainable": _trainable, "minutes": _minutes}
    figures = [(n, title, text, inline_svg(f)) for n, title, text, f in drawn]
    text = environment.get_template("study.html.j2").render(
        **values,
        figures=figures,
        columns=shown,
        best={column.name: tied_best(results, column.name, significant) for column in shown},
        yaml=public_yaml(study),
        date=f"{datetime.now():%d %B %Y, %H:%M}",
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def _setup(store: Store) -> str:
    study, trials = store.config, store.trials()
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''} per trial"
    configs = []
    for trial in (t for t in trials if set(t.picks) >= set(study.search)):  # others were only just asked for
        with contextlib.suppress(ConfigError):  # picks that do not go together: the trial failed
            configs.append(study.run_config(trial.picks, trial.number, study.seeds[0]))
    models = " or ".join(dict.fromkeys(config.base_model for config in configs))
    steps = sorted({config.training.steps for config in configs})
    lengths = f"{steps[0]} to {steps[-1]} steps" if len(steps) > 1 else f"{steps[0]} steps" if steps else ""
    return ", ".join(filter(None, [models, lengths, seeds, f"sampler {study.sampler.name}"]))


def _tiles(store: Store, arms: list[ReportRow], trials: list[Trial]) -> list[tuple[str, str]]:
    counts, hours = Counter(t.state for t in trials), sum(t.seconds for t in trials) / 3600
    return [
        (
            f"{counts['complete']}",
            "trials complete" + "".join(f", {n} {s}" for s, n in counts.items() if s != "complete"),
        ),
        (f"{len(arms)}", "arms in the table"),
        (f"{hours:.1f} h", "of trials, added up over workers"),
        (", ".join(o.figure for o in store.config.objectives), "what was optimised"),
    ]


def _reading(store: Store, arms: list[ReportRow]) -> str:
    study = store.config
    words = "Brackets: 95 % intervals over questions."
    if len(study.seeds) > 1:
        with_seeds = "resample seeds and questions" if all(arm.records for arm in arms) else "are of questions alone"
        words += f" Values are means over {len(study.seeds)} seeds; the intervals {with_seeds}."
    if any(arm.halves for arm in arms):
        words += (
            f" {study.report.select} was chosen per arm by {study.objectives[0].figure} on one half of the items; the"
            " figures here are of the other half."
        )
    return words


def _notes(store: Store, arms: list[ReportRow], trials: list[Trial], root: Path) -> list[str]:
    study, notes = store.config, []
    if store.going_on() or not store.ended():
        notes.append(f"The study is not finished: {command_line(store, root, 'resume', study.name)}")
    if study.report.select and arms and not all(arm.halves for arm in arms):
        notes.append(
            "Item records are not on this machine, so the choice and the figures rest on the same items: the figures "
            "of arms with several candidates are somewhat too good."
        )
    broken = [arm.name for arm in arms if not arm.trial.feasible]
    if study.constraints and broken:
        notes.append(f"No variant of these arms satisfies the constraints: {', '.join(broken)}.")
    rows = {arm.name for arm in arms}
    notes += [
        f"{item.label} is not made yet, or on another machine: resume the study there"
        for item in study.posthoc
        if item.label not in rows
    ]
    again = [str(t.number) for t in trials if t.attempts > 1]
    if again:
        notes.append(f"Continued after they had been stopped or lost: trial {', '.join(again)}.")
    return notes


def _commands(store: Store, root: Path, folder: Path) -> list[str]:
    name = store.config.name
    out = [] if folder.resolve() == study_folder(root, name).resolve() else ["--out", os.path.relpath(folder)]
    return [
        command_line(store, root, "study", os.path.relpath(folder / "study.yaml"), "--workers", str(_at_once(store))),
        command_line(store, root, "export", name, f"{name}.csv"),
        command_line(store, root, "report", name, *out),
    ]


def _at_once(store: Store) -> int:
    """Most attempts that ran at a time: the workers there were. Of one that died nobody knows when it ended."""
    spans = [(t.datetime_start, t.datetime_complete) for t in store.study.trials if not died(t)]
    ended = [(start, end) for start, end in spans if start and end]
    return max((sum(a <= start < b for a, b in ended) for start, _ in ended), default=1)


def _markdown(values: dict[str, Any], drawn: Sequence[Picture], results: Sequence[Any]) -> str:
    parts = [
        f"# {values['question']}",
        values["setup"] + ".",
        *values["words"],
        markdown_table(results),
        values["reading"],
    ]
    if values["paper"] is not None:
        table = values["paper"].round(1).reset_index(names="arm")
        rows = [list(table.columns), *table.astype(str).values.tolist()]
        parts += ["## Beside the paper", markdown_rows(rows)]
    parts += [f"## {title}\n\n![{title}]({name}.png)\n\n{text}" for name, title, text, _ in drawn]
    if values["failed"]:
        parts += [
            "## Trials that failed",
            "\n".join(f"- {name}: {' '.join(r.split())}" for name, r in values["failed"]),
        ]
    if values["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in values["notes"])]
    parts += ["## Again", "```bash\n" + "\n".join(values["commands"]) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _csv(arms: Sequence[ReportRow]) -> str:
    rows = [
        {"arm": a.name, "trial": a.trial.number, "method": a.result.method, "learning_rate": a.result.learning_rate,
         "candidates": a.candidates, "unused_items": a.halves, "seconds": a.trial.seconds,
         **flat_figures(a.result.scorecard),
         **{f"cost_{name}": value for name, value in a.result.cost.items()}}
        for a in arms
    ]  # fmt: skip
    return csv_text(rows, list(dict.fromkeys(n for row in rows for n in row)))


def _trainable(arm: ReportRow) -> str:
    value = arm.result.cost.get("trainable_parameters", math.nan)
    return f"{value / 1e6:.1f}" if math.isfinite(value) else "-"


def _minutes(arm: ReportRow) -> str:
    return f"{arm.trial.seconds / 60:.1f}"

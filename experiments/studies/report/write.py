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
from experiments.common.files import write_bytes, write_text
from experiments.records import ArmResult
from experiments.reporting.doubts import doubt
from experiments.reporting.page import image_bytes, write_page
from experiments.reporting.summary import claims
from experiments.reporting.table import Table
from experiments.reporting.tables import COSTS, arms_table, columns_of, flat_costs, flat_figures
from experiments.scorecard import SignificantPairs
from experiments.scorecard.figures import FIGURES
from experiments.studies.artifacts import attach_pictures
from experiments.studies.exchange import write_trials
from experiments.studies.fetch import fetch_runs
from experiments.studies.laws.report import mixture_laws
from experiments.studies.posthoc import of_other_steps, posthoc_rows
from experiments.studies.report.answers import answers_table
from experiments.studies.report.paper import at_each, compared, sentences
from experiments.studies.report.pictures import Picture, law_pictures, pictures
from experiments.studies.report.readings import matched_gain, outside, pareto_volume, without_records
from experiments.studies.report.same_gain import same_gain
from experiments.studies.report.table import picks_text
from experiments.studies.selection import ReportRow, check_records, choose, significant_arms
from experiments.studies.storage import command_line, public_yaml, study_folder
from experiments.studies.trials import Trial, died, taken_over

if TYPE_CHECKING:
    import pandas as pd

    from experiments.studies.queue import Store


def write_study_report(store: Store, root: Path, folder: Path) -> Path:
    """Write the report of what the study has so far; returns report.html. Needs item records for held-out choices.

    Those of other machines are fetched from MLflow.

    Raises DamagedError if records of a trial are others than its result was made from.
    """
    study, trials = store.config, store.trials()
    fetch_runs(study, trials, root, lambda text: None)
    check_records(trials, root)
    arms = choose(study, trials, root)
    arms += posthoc_rows(study, arms, root)
    results, (significant, apart) = [arm.result for arm in arms], significant_arms(arms, root)
    paper = compared(arms) if study.report.paper else None
    drawn = pictures(store, arms, trials, root, paper)
    found = [(one.text, doubt(one, seeds=len(study.seeds))) for one in claims(results, significant, len(study.seeds))]
    words = [*sentences(arms), *at_each(study, trials)] if study.report.paper else []
    words += filter(None, [matched_gain(arms, root), pareto_volume(store, trials)])
    if study.report.law:
        said, laws = mixture_laws(study, arms, root)
        words, drawn = words + said, drawn + law_pictures(laws)
    further = (same_gain(study, trials, arms, root), answers_table(arms, root), _next_to_paper(paper))
    _write_files(store, root, folder, arms, drawn)
    values = {
        "study": study,
        "question": study.question or f"What does {study.name} show?",
        "setup": _setup(store),
        "tiles": _tiles(store, arms, trials),
        "claims": [*found, *((text, "") for text in words)],
        "pictures": drawn,
        "tables": [table for table in further if table is not None],
        "failed": [(f"trial {t.number} ({picks_text(t)})", t.reason) for t in trials if t.state == "failed"],
        "notes": _notes(store, arms, trials, root, apart),
        "reading": _reading(store, arms),
        "commands": _commands(store, root, folder),
        "yaml": public_yaml(study),
        "links": _links(arms, root, folder) if folder.resolve() == study_folder(root, study.name).resolve() else [],
        "date": f"{datetime.now():%d %B %Y, %H:%M}",
        **_arms(arms, results, significant),
    }
    write_page(folder / "report.md", "study", **values)
    page = write_page(folder / "report.html", "study", **values)
    attach_pictures(store.study, root, {f"{one.name}.png": folder / f"{one.name}.png" for one in drawn})
    return page


def _write_files(store: Store, root: Path, folder: Path, arms: Sequence[ReportRow], drawn: Sequence[Picture]) -> None:
    """Write the pictures, table.csv and, in a folder of its own, the trials and the YAML without a password.

    The YAML is first: after a kill the same command knows the folder as its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder.resolve() != study_folder(root, store.config.name).resolve()
    if copy:
        write_text(folder / "study.yaml", public_yaml(store.config))
    for picture in drawn:
        write_bytes(folder / f"{picture.name}.png", image_bytes(picture.figure, "png"))
    write_text(folder / "table.csv", _csv(arms))
    if copy:
        write_trials(store.config, store.trials(), root, folder)


def _arms(
    arms: Sequence[ReportRow], results: Sequence[ArmResult], significant: SignificantPairs | None
) -> dict[str, Any]:
    """Make the table of arms as in a run's report, and one with kept accuracy and more costs for the HTML page."""
    gain, retention, *others = columns_of(results)
    columns = (gain, retention, FIGURES["kept_accuracy"], *others)
    costs = {"trainable, M": [_millions(arm) for arm in arms]}
    costs["minutes"] = ["-" if arm.result.operation else f"{arm.trial.seconds / 60:.1f}" for arm in arms]
    return {
        "table": arms_table(results),
        "arms": arms_table(results, significant, columns, costs),
        "columns": (*columns, *COSTS),
    }


def _next_to_paper(table: pd.DataFrame | None) -> Table | None:
    """Show our figures next to the paper's, from `compared`; None without them."""
    if table is None:
        return None
    cells = table.round(1).astype(str)
    head = ("arm", *(str(name).replace("_", " ") for name in table.columns))
    note = (
        "Accuracies in %: new = the new task (paper: mean of MathHard and GSM8K), kept = the kept tasks (paper: mean "
        "of GPQA and MMLU), average = the mean of the two. Ranks: 1 is the highest. The paper's figures are of "
        "Llama-3.1-8B on OpenMath2: compare orders, not values."
    )
    rows = tuple((str(name), *row) for name, row in zip(cells.index, cells.itertuples(index=False), strict=True))
    return Table("Next to the paper", head, rows, note, numbers=len(table.columns))


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
        alone = [arm.name for arm in arms if not arm.records]
        with_seeds = "add the spread of the seeds to that of questions" if alone else "resample seeds and questions"
        whose = f"those of {', '.join(alone)}" if 0 < len(alone) < len(arms) else "the intervals"
        words += f" Values are means over {len(study.seeds)} seeds; {whose} {with_seeds}."
    if any(arm.halves for arm in arms):
        words += (
            f" {study.report.select} was chosen per arm by {study.objectives[0].figure} on one half of the items; the"
            " figures here are of the other half."
        )
    return words


def _notes(store: Store, arms: list[ReportRow], trials: list[Trial], root: Path, apart: str) -> list[str]:
    """apart: which arm answered other questions."""
    study, notes = store.config, []
    if store.going_on() or not store.ended():
        notes.append(f"The study is not finished: {command_line(store, root, 'resume', study.name)}")
    notes += without_records(trials, root)
    if study.report.select and arms and not all(arm.halves for arm in arms):
        why = "Item records are not on this machine"
        if all(arm.records for arm in arms):
            why = "The half of the items that chooses does not have the figure"
        notes.append(
            f"{why}, so the choice and the figures rest on the same items: the figures of arms with several "
            "candidates are somewhat too good."
        )
    if apart:
        notes.append(f"{apart}: arms are compared by their intervals, not by their answers to the same questions.")
    notes += [*outside(trials, arms), *of_other_steps(arms)]
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


def _links(arms: Sequence[ReportRow], root: Path, folder: Path) -> list[tuple[str, str]]:
    """Return the path to the report of each arm's runs; not for a copy of the report, which is read elsewhere."""
    found = []
    for arm in arms:
        for run in arm.runs:
            page = root / str(run["folder"]) / "report.html"
            name = arm.name if len(arm.runs) == 1 else f"{arm.name}, seed {run['seed']}"
            found += [(name, os.path.relpath(page, folder))] if page.is_file() else []
    return found


def _at_once(store: Store) -> int:
    """Count the most attempts that ran at a time: the workers. Nobody knows when one that died ended."""
    spans = [(t.datetime_start, t.datetime_complete) for t in store.study.trials if not (died(t) or taken_over(t))]
    ended = [(start, end) for start, end in spans if start and end]
    return max((sum(a <= start < b for a, b in ended) for start, _ in ended), default=1)


def _csv(arms: Sequence[ReportRow]) -> str:
    rows = [
        {"arm": a.name, "trial": a.trial.number, "method": a.result.method, "learning_rate": a.result.learning_rate,
         "candidates": a.candidates, "unused_items": a.halves,
         "seconds": None if a.result.operation else a.trial.seconds,  # an operation has not trained
         **flat_figures(a.result.scorecard), **flat_costs(a.result)}
        for a in arms
    ]  # fmt: skip
    return Table.of(rows).csv()


def _millions(arm: ReportRow) -> str:
    value = arm.result.cost.get("trainable_parameters", math.nan)
    return f"{value / 1e6:.1f}" if math.isfinite(value) else "-"

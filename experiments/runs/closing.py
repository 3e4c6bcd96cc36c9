"""End a run: write its report from the records and results of all arms, and log it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.files import read_note, write_bytes
from experiments.common.printable import escaped
from experiments.records import ArmResult
from experiments.reporting.answers import FILE as ANSWERS
from experiments.reporting.answers import question_texts, write_turned
from experiments.reporting.differences import JSON
from experiments.reporting.page import image_bytes, inline_svg
from experiments.reporting.plots.caption import asked_in
from experiments.reporting.plots.multiples import gained_kept_figure
from experiments.reporting.report import write_report
from experiments.reporting.run_details import RunRecords
from experiments.reporting.table import Table
from experiments.reporting.tables import arms_table
from experiments.reporting.text import label
from experiments.runs.arm import ArmRun
from experiments.runs.baseline import remarks_on
from experiments.runs.outcome import Outcome
from experiments.runs.prepared import Prepared
from experiments.runs.result_file import whole_results
from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker

REPORT_FILES = ("report.html", "report.md", "table.csv", "forgetting.png")


def close_run(
    prepared: Prepared, arms: Sequence[ArmRun], results: Sequence[ArmResult], run: Run, tracker: Tracker
) -> Outcome:
    """Write report, tables and pictures to the run's folder, log them, and return the outcome. results: of the arms."""
    folder, command = prepared.folder, tracker.ui_command()
    of_base = remarks_on(prepared.base, prepared.suites, prepared.tokenizer)
    pairs = list(zip(arms, results, strict=True))
    finished = [arm for arm, result in pairs if result.status == "finished"]
    drawn = {arm.arm.name: arm.drawn() for arm in finished}
    packed = {arm.arm.name: arm.packing() for arm in finished}
    records = {label(result): arm.records.read() for arm, result in pairs}
    questions = question_texts(prepared.suites.suites.values())
    records = {name: steps for name, steps in records.items() if steps}
    details = RunRecords(prepared.config, prepared.base, results, records, questions)
    pictures = details.pictures()
    asked = asked_in(prepared.config.to_dict(), prepared.base)
    report = write_report(
        folder, prepared.config, prepared.base_headline, results, command,
        details=details.tables(drawn, _posthoc_results(folder), prepared.searched.overlaps, packed), figures=pictures,
        significant=details.significant_pairs(), links=_links(arms, tracker), asked=asked,
        notes=[*of_base, f"Trained and measured in {prepared.precision}."],
    )  # fmt: skip
    compared = details.differences()
    more = compared.write(folder, inline_svg(gained_kept_figure(results, "", asked))) if compared else []
    more += _write_answers(folder, details.turned())
    for name in (*_write_pictures(folder, pictures), *REPORT_FILES, *more):
        run.log_file(folder / name)
    if shown := [name for name in more if name in (JSON, ANSWERS)]:
        run.set_tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"} for name in shown])})
    run.log_note(escaped(arms_table(results).markdown()))
    return Outcome(folder, list(results), report, command, tracker.run_url(run.id), prepared.base_headline)


def _links(arms: Sequence[ArmRun], tracker: Tracker) -> list[tuple[str, str]]:
    """Return the address of each arm in MLflow, by its label, as far as it has a run there."""
    found = [(arm.folder.name, read_note(arm.folder / "mlflow.json").get("run_id")) for arm in arms]
    return [(name, tracker.run_url(run_id)) for name, run_id in found if run_id]


def _write_answers(folder: Path, table: Table | None) -> list[str]:
    """Write the answers that turned for MLflow and for the report of a study. Returns the name of the file."""
    if table is None:
        return []
    write_turned(folder, table)
    return [ANSWERS]


def _posthoc_results(folder: Path) -> list[ArmResult]:
    """Results of operations on the trained weights, which an earlier report of this run does not have."""
    return whole_results(sorted(folder.glob("posthoc/*/result.json")))


def _write_pictures(folder: Path, pictures: Sequence[tuple[str, Figure]]) -> list[str]:
    """Write pictures as PNG files named after their titles; return the names."""
    names = [f"{title.lower().replace(' ', '-')}.png" for title, _ in pictures]
    for name, (_, picture) in zip(names, pictures, strict=True):
        write_bytes(folder / name, image_bytes(picture, "png"))
    return names

"""Show in a study's report which answers each arm lost and won, with the texts of the questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.common.errors import DamagedError
from experiments.reporting.answers import FEW, FILE, HEAD, MANY, SHOWN, read_turned, rule
from experiments.reporting.table import Row, Table
from experiments.reporting.text import label
from experiments.studies.selection import ReportRow
from experiments.studies.trial_results import result_of

MOST = 20  # arms


def answers_table(arms: Sequence[ReportRow], root: Path) -> Table | None:
    """Show lost and won answers of each arm's first seed, as its run's report has them; None if there are none.

    Runs of earlier versions and of other machines have no file with these texts, and are left out.
    """
    trained = [arm for arm in arms if not arm.result.operation]
    some = trained[:MOST]
    most = {"lost": SHOWN if len(some) <= MANY else FEW, "won": FEW}
    found = {arm.name: _turned(arm, root) for arm in some}
    rows = [
        (name, *row) for name, own in found.items() for kind, n in most.items()
        for row in [row for row in own or [] if row[0] == kind][:n]
    ]  # fmt: skip
    if not rows:
        return None
    note = rule(most["lost"])
    if changed := [name for name, own in found.items() if own is None]:
        note += f" Without {', '.join(changed)}: {FILE} is not as the run wrote it."
    note += " Of the first seed." if any(len(arm.runs) > 1 for arm in some) else ""
    note += f" The first {MOST} of {len(trained)} arms." if len(trained) > MOST else ""
    return Table("Answers that turned", HEAD, tuple(rows), note)


def _turned(arm: ReportRow, root: Path) -> list[Row] | None:
    """Return the rows of a run's table, without the name of the arm; None if it is damaged."""
    run = arm.runs[0]
    own = label(result_of(run))
    try:
        return [tuple(row[1:]) for row in read_turned(root / str(run["folder"])) if row[0] == own]
    except DamagedError:  # the tables of figures have their own checks
        return None

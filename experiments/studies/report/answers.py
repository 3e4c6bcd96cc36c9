"""Show in a study's report which answers each arm lost and won, with the texts of the questions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from experiments.common.errors import DamagedError
from experiments.common.files import read_json
from experiments.reporting.answers import FEW, FILE, HEAD, MANY, SHOWN, rule
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
    rows = [(arm.name, *row) for arm in some for kind in most for row in _turned(arm, root, kind)[: most[kind]]]
    if not rows:
        return None
    note = rule(most["lost"])
    note += " Of the first seed." if any(len(arm.runs) > 1 for arm in some) else ""
    note += f" The first {MOST} of {len(trained)} arms." if len(trained) > MOST else ""
    return Table("Answers that turned", HEAD, tuple(rows), note)


def _turned(arm: ReportRow, root: Path, kind: str) -> list[Row]:
    """Return the rows of a run's table of one kind, without the name of the arm."""
    run = arm.runs[0]
    own = label(result_of(run))
    with contextlib.suppress(DamagedError):  # the tables of figures have their own checks
        rows = read_json(root / str(run["folder"]) / FILE).get("data", [])
        return [tuple(row[1:]) for row in rows if row[:2] == [own, kind]]
    return []

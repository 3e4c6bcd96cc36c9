"""How the arms of a run differ: a row for each arm and figure, as MLflow's table and as a page of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.common.files import write_text
from experiments.records import ArmResult, Estimate, Record
from experiments.reporting.page import write_page
from experiments.reporting.table import Cell, Row, Table
from experiments.reporting.text import figure_text, label, p_text, with_interval
from experiments.scorecard.card import drawn_figures
from experiments.scorecard.differences import COMPARED, Difference, differences
from experiments.scorecard.figure import NATS, Places
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.flips import distinct_keys
from experiments.scorecard.pairwise import net_correct
from experiments.scorecard.sample import Sample
from experiments.scorecard.units import unit_values

HEAD = (
    "arm", "figure", "value", "low", "high", "reference", "difference", "difference_low", "difference_high", "p",
    "p_holm",
)  # fmt: skip
JSON, PAGE = "comparison.json", "comparison.html"
SIGNIFICANT = 0.05  # of p after Holm's correction


@dataclass(frozen=True)
class ArmDifferences:
    """The differences of a run's arms from its first finished one, `reference`. cards: figures by label."""

    reference: str
    cards: Mapping[str, Mapping[str, Estimate]]
    found: Sequence[Difference]

    def rows(self) -> list[Row]:
        """Return a row for each arm and figure, with the columns of HEAD. None: there is no number."""
        by_arm = {(d.name, d.figure): d for d in self.found}
        rows: list[Row] = []
        for arm, card in self.cards.items():
            for name in (name for name in COMPARED if name in card):
                one = by_arm.get((arm, name))
                less = (*_plain(one.value), _number(one.p), _number(one.p_holm)) if one else (None,) * 5
                rows.append((arm, name, *_plain(card[name]), self.reference, *less))
        return rows

    def write(self, folder: Path, image: str) -> list[str]:
        """Write comparison.json, which MLflow shows as a table, and comparison.html. Returns their names.

        image: the picture of the page, from `inline_svg`.
        """
        values = {"columns": HEAD, "data": self.rows()}
        write_text(folder / JSON, json.dumps(values))
        names = [name for name in COMPARED if any(name in card for card in self.cards.values())]
        write_page(
            folder / PAGE,
            "compare",
            question="How do the arms of this run differ?",
            image=image,
            tables=[self._figures(names), differences_table(self.found, self.reference, "arm")],
            figures=[FIGURES[name] for name in names],
            remarks=[remark("arm")],
        )
        return [JSON, PAGE]

    def _figures(self, names: Sequence[str]) -> Table:
        rows = tuple((arm, *(figure_text(card, name) for name in names)) for arm, card in self.cards.items())
        return Table("Figures", ("arm", *(FIGURES[name].title for name in names)), rows)


def arm_differences(
    base: Sequence[Record], last: Mapping[str, Sequence[Record]], results: Sequence[ArmResult], draws: int, seed: int
) -> ArmDifferences | None:
    """Compare the finished arms with the first of them; None for fewer than two. last: records by label."""
    cards = {label(r): r.scorecard for r in results if r.status == "finished" and label(r) in last}
    if len(cards) < 2:
        return None
    reference = next(iter(cards))
    keys = distinct_keys({name: last[name] for name in cards})
    drawn = {name: drawn_figures(Sample(base, last[name], draws, seed, key=keys[name])) for name in cards}
    answers = {name: net_correct([(base, last[name])]) for name in cards}
    units = {name: unit_values([(base, last[name])]) for name in cards}
    return ArmDifferences(reference, cards, differences(drawn, answers, reference, units))


def differences_table(found: Sequence[Difference], reference: str, what: str) -> Table:
    """Show a row for each arm or run (`what`) and figure: its difference from the reference, its p and Holm's."""
    rows = tuple(
        (d.name, FIGURES[d.figure].title, with_interval(d.value, True, _places(d)), p_text(d.p), p_text(d.p_holm))
        for d in found
    )
    head = (f"{what} less {reference}", "figure", "difference", "p", "p (Holm)")  # in a terminal there is no title
    return Table(f"Differences to {reference}", head, rows)


def _places(difference: Difference) -> Places:
    """A small difference of KLs may be a significant one, and is not written as .000."""
    small = abs(difference.value.value) < 0.0005
    return NATS if small and FIGURES[difference.figure].places == NATS else (3, 2, 2)


def remark(what: str) -> str:
    """Say how to read such a table. what: `arm` or `run`."""
    return f"Brackets: 95 % intervals; differences are paired by question; Holm's p is over the {what}s of one figure."


def _plain(value: Estimate) -> tuple[Cell, Cell, Cell]:
    return _number(value.value), _number(value.low), _number(value.high)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

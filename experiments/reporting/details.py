"""What a report shows besides its main table: trajectories, further figures, data really drawn, costs, operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from experiments.records import ArmResult, Record
from experiments.reporting.plots.alignment import alignment_figure
from experiments.reporting.text import Places, gain_name, gain_text, label, number, with_interval
from experiments.scorecard import envelope_area, gained, hypervolume, matched_retention, stability_gap
from experiments.scorecard.bootstrap import estimate
from experiments.scorecard.draws import harmonic
from experiments.scorecard.trajectory import Trajectory, drawn_trajectory

NATS: Places = (3, 2, 1)
FURTHER: dict[str, tuple[str, Places]] = {  # figures that only some runs measure: title and decimals
    "kl_new": ("KL, new task", NATS),
    "instructions_accuracy": ("instructions", (2, 2, 2)),
    "retention_instructions": ("instructions kept", (2, 2, 2)),
    "kept_accuracy_likelihood": ("kept, by likelihood", (2, 2, 2)),
    "kept_accuracy_generated": ("kept, in own words", (2, 2, 2)),
    "kept_parse_failures": ("naming no option", (2, 2, 2)),
    "floor_nfr": ("A/A floor", (3, 3, 3)),
    "nfr_above_floor": ("flips above floor", (3, 3, 3)),
    "alignment_cosine": ("cosine", (3, 3, 3)),
    "alignment_relative_l2": ("relative L2", (3, 3, 3)),
    "alignment_cka": ("CKA", (3, 3, 3)),
    "alignment_neighbours": ("neighbours", (3, 3, 3)),
    "alignment_update": ("|dW|/|W|", (4, 3, 3)),
}
ALIGNMENT = (  # forms of the suite's records: title in the report, title of the picture
    ("base", "Hidden states by layer", "Hidden states and weights against the base model's"),
    ("branches", "Branches by layer", "Expanded layers: the trained copy's branch against the frozen one's"),
)
COSTS = {
    "tokens": "tokens trained on",
    "replayed_tokens": "of them replayed",
    "seconds": "seconds",
    "trainable_parameters": "trained parameters",
    "added_parameters": "added at inference",
}


@dataclass(frozen=True)
class Table:
    """Cells as text. note: how to read it, one line below the table."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def trajectory_table(
    base: Sequence[Record], arms: Mapping[str, Mapping[int, Sequence[Record]]], draws: int, seed: int = 0
) -> Table | None:
    """Figures of each arm's whole trajectory; None where no arm has both suites.

    arms: records by step, by arm. The matched gain is the highest that all arms reach that gain anything (`gained`).
    """
    suites = {record.suite for record in base}
    if not {"new", "kept"} <= suites:
        return None
    found = {name: drawn_trajectory(base, steps, draws, seed) for name, steps in arms.items() if len(steps) > 0}
    if not found:
        return None
    learned = {name: way for name, way in found.items() if gained(way)}
    gain, retention = matched_retention(learned) if learned else (0.0, {})
    highest = max((float(way.gain[-1, 0]) for way in learned.values()), default=0.0)
    rows = []
    for name, way in found.items():
        matched = area = average = "n/a"
        if name in learned:
            matched = with_interval(estimate(retention[name]))
            area = with_interval(estimate(envelope_area(way.gain, way.retention, gain)))
        if highest > 0:
            average = with_interval(estimate(harmonic(way.retention[-1], way.gain[-1] / highest)))
        volume = with_interval(estimate(hypervolume(way.gain, way.retention)))
        rows.append((name, matched, area, volume, average, *_gap(way)))
    reached = "the highest that all reach of the arms that gain" if learned else "no arm gains outside its interval"
    reached += f" (n/a: {', '.join(n for n in found if n not in learned)})" if 0 < len(learned) < len(found) else ""
    head = f"retention at gain {number(gain, True, NATS)}"
    return Table(
        "Trajectory",
        ("arm", head, "area", "hypervolume", "harmonic average", "gap depth", "recovered at step"),
        tuple(rows),
        f"Gain {number(gain, True, NATS)}: {reached}. Area: mean retention over gains from 0 to there. Hypervolume: "
        "what the evaluations dominate above gain 0 and retention 0. Harmonic average: at the end, of retention and of "
        "the gain over the highest of these arms. Gap depth: the largest fall of kept accuracy below the base at any "
        "evaluation (it leans to the deep side, being picked for that). Recovered: the first later evaluation at the "
        "base's level. Brackets: 95 % intervals over questions.",
    )


def _gap(way: Trajectory) -> tuple[str, str]:
    depth, step = stability_gap(way)
    return with_interval(depth), "no fall" if depth.value <= 0 else "never" if step is None else str(step)


def further_table(results: Sequence[ArmResult]) -> Table | None:
    """Figures that only some runs measure, those that are there."""
    arms = [r for r in results if r.scorecard]
    names = [name for name in FURTHER if any(name in r.scorecard for r in arms)]
    if not names:
        return None
    rows = tuple((label(r), *(with_interval(r.scorecard.get(n), False, FURTHER[n][1]) for n in names)) for r in arms)
    note = ""
    if "kl_new" in names:
        note += "KL, new task: KL(base || tuned) on replies to questions of the new task, nats per token."
    if "floor_nfr" in names:
        note += (
            " A/A floor: negative flips of the base against itself, the kept questions asked in other words (but for "
            "agreement, which has one wording)."
        )
    if any(name.startswith("alignment") for name in names):
        note += (
            " Hidden states against the base's, mean over layers: cosine, CKA and neighbours are 1 where none moved."
        )
    return Table("Further figures", ("arm", *(FURTHER[n][0] for n in names)), rows, note.strip())


def data_table(drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table | None:
    """drawn: by arm, what `ExperimentData.drawn` gives. A stream has a column for the stage."""
    staged = any(part["stage"] > 1 for parts in drawn.values() for part in parts)
    rows = tuple(
        (
            arm,
            *([str(part["stage"])] if staged else []),
            str(part["name"]),
            "replayed" if part["replayed"] else "new",
            f"{part['share']:.1%}",
            f"{part['asked']:.1%}",
            f"{part['tokens']:,}",
            f"{part['epochs']:.3g}",
        )
        for arm, parts in drawn.items()
        for part in parts
    )
    head = ("arm", *(["stage"] if staged else []), "source", "kind", "share", "asked for", "tokens", "epochs")
    whole = "the stage's" if staged else "all"
    note = (
        f"Share: of {whole} tokens really trained on, beside the share asked for. Epochs: times the source was begun."
    )
    return Table("Data that was drawn", head, rows, note) if rows else None


def cost_table(results: Sequence[ArmResult]) -> Table | None:
    names = [name for name in COSTS if any(name in r.cost for r in results)]
    rows = tuple((label(r), *(_count(r.cost.get(name)) for name in names)) for r in results if r.cost)
    note = "Added at inference: parameters that the trained model has beyond the base."
    return Table("Cost", ("arm", *(COSTS[name] for name in names)), rows, note) if rows else None


def _count(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def posthoc_table(results: Sequence[ArmResult]) -> Table | None:
    """Operations on trained weights, measured as the arms were (`experiments.posthoc`)."""
    if not results:
        return None
    name = gain_name(results)
    rows = tuple(
        (
            label(r),
            r.operation or "",
            gain_text(r.scorecard, name),
            with_interval(r.scorecard.get("retention")),
            with_interval(r.scorecard.get("nfr")),
            with_interval(r.scorecard.get("kl"), places=NATS),
        )
        for r in results
    )
    head = ("arm", "operation", "gain", "retention", "neg. flips", "KL")
    return Table("Operations after training", head, rows, "Nothing was trained for these: the weights were changed.")


def alignment_pictures(last: Mapping[str, Sequence[Record]]) -> list[tuple[str, Figure]]:
    """Heat maps by layer, where suite `alignment` was measured: of hidden states and weights against the base's, and of
    the two branches of expanded layers. last: each arm's last records."""
    from experiments.evaluation.suites.alignment import records_table

    pictures = []
    for form, title, words in ALIGNMENT:
        tables = {name: records_table(records, form) for name, records in last.items()}
        found = {name: table for name, table in tables.items() if len(table)}
        if found:
            pictures.append((title, alignment_figure(found, words)))
    return pictures

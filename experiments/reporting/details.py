"""The further tables of a report: trajectories, further figures, data really drawn, costs, operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.data.overlap import LEAST, N, Overlap
from experiments.records import ArmResult, Record
from experiments.reporting.plots.alignment import alignment_figure
from experiments.reporting.table import Table
from experiments.reporting.tables import asked_once
from experiments.reporting.text import figure_text, format_number, gain_name, gain_text, label, with_interval
from experiments.scorecard import stability_gap
from experiments.scorecard.bootstrap import estimate
from experiments.scorecard.figure import NATS
from experiments.scorecard.figures import FIGURES, GAINS, shown
from experiments.scorecard.trajectory import (
    Trajectory,
    drawn_trajectory,
    harmonic_averages,
    trajectory_figures,
)

WHOLE = ("retention_matched", "area", "hypervolume", "average_harmonic")  # figures of a whole trajectory
OTHERS = ("retention", "nfr", "kl")  # figures of an operation, after its gain
ALIGNMENT = (  # forms of the suite's records: title in the report, title of the picture
    ("base", "Hidden states by layer", "Hidden states and weights against the base model's"),
    ("branches", "Branches by layer", "Expanded layers: the trained copy's branch against the frozen one's"),
)


def trajectory_table(
    base: Sequence[Record], arms: Mapping[str, Mapping[int, Sequence[Record]]], draws: int, seed: int = 0
) -> Table | None:
    """Show the figures of each arm's whole trajectory; None if no arm has both suites.

    arms: records by step, by arm. The matched gain is the highest that all arms reach that gain anything (`gained`).
    """
    suites = {record.suite for record in base}
    if not {"new", "kept"} <= suites:
        return None
    found = {name: drawn_trajectory(base, steps, draws, seed) for name, steps in arms.items() if len(steps) > 0}
    if not found:
        return None
    matched, figures = trajectory_figures(found)
    learned = [name for name in found if "area" in figures[name]]
    averages = harmonic_averages(found, learned)
    rows = []
    for name, path in found.items():
        card = {figure: estimate(values) for figure, values in figures[name].items()}
        if name in averages:
            card["average_harmonic"] = estimate(averages[name])
        cells = (figure_text(card, figure) if figure in card else "n/a" for figure in WHOLE)
        rows.append((name, *cells, *_gap(path)))
    reached = "the highest that all reach of the arms that gain" if learned else "no arm gains outside its interval"
    reached += f" (n/a: {', '.join(n for n in found if n not in learned)})" if 0 < len(learned) < len(found) else ""
    gain = format_number(matched or 0.0, True, NATS)
    return Table(
        "Trajectory",
        ("arm", f"retention at gain {gain}", *(FIGURES[n].title for n in (*WHOLE[1:], "gap_depth", "gap_recovery"))),
        tuple(rows),
        f"Gain {gain}: {reached}. Area: mean retention over gains from 0 to there. Hypervolume: "
        "what the evaluations dominate above gain 0 and retention 0. Harmonic average: at the end, of retention and of "
        "the gain over the highest of these arms. Gap depth: the largest fall of kept accuracy below the base at any "
        "evaluation (picked for being the largest, which its interval allows for). Recovered: the first later "
        "evaluation at the base's level. Brackets: 95 % intervals over questions.",
    )


def _gap(path: Trajectory) -> tuple[str, str]:
    depth, step = stability_gap(path)
    return with_interval(depth), "no fall" if depth.value <= 0 else "never" if step is None else str(step)


def further_table(results: Sequence[ArmResult]) -> Table | None:
    """Show the figures that only some runs measure; None if there are none."""
    arms = [r for r in results if r.scorecard]
    gains = [name for name in GAINS if name != gain_name(results)]  # of a run with both questions and texts
    names = [*gains, *(figure.name for figure in shown("further"))]
    names = [name for name in names if any(name in r.scorecard for r in arms)]
    if not names:
        return None
    rows = tuple((label(r), *(figure_text(r.scorecard, name) for name in names)) for r in arms)
    note = ""
    if "kl_new" in names:
        note += f"{FIGURES['kl_new'].axis}."
    if "floor_nfr" in names:
        note += (
            " A/A floor: negative flips and retention of the base against itself, the kept questions asked in other "
            f"words. {asked_once(arms)}"
        )
    if any(name.startswith("alignment") for name in names):
        note += (
            " Hidden states against the base's, mean over layers: cosine, CKA and neighbours are 1 where none moved."
        )
    return Table("Further figures", ("arm", *(FIGURES[name].title for name in names)), rows, note.strip())


def data_table(drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table | None:
    """Show the data that each arm was trained on. drawn: by arm, from `ExperimentData.drawn`; a stream has stages."""
    staged = any(part["stage"] > 1 for parts in drawn.values() for part in parts)
    cut = any(_too_long(part) for parts in drawn.values() for part in parts)
    refused = any(part.get("refused") for parts in drawn.values() for part in parts)
    rows = tuple(
        (
            arm,
            *([str(part["stage"])] if staged else []),
            *_drawn_row(part),
            *(
                [f"{_too_long(part):,} of {_too_long(part) + part['examples'] - part.get('shortened', 0):,}"]
                if cut
                else []
            ),
            *([f"{part.get('refused', 0):,}"] if refused else []),
        )
        for arm, parts in drawn.items()
        for part in parts
    )
    columns = ("source", "kind", "share", "asked for", "tokens", "rows", "epochs", "repeats")
    head = (
        "arm",
        *(["stage"] if staged else []),
        *columns,
        *(["too long"] if cut else []),
        *(["refused"] if refused else []),
    )
    whole = "the stage's" if staged else "all"
    note = (
        f"Share: of {whole} tokens really trained on, next to the share asked for. Rows: "
        "conversations, or parts of texts. Epochs: times the source was begun. Repeats: examples that an "
        "earlier epoch had drawn."
        + (
            " Too long: chats longer than data.length, which were left out, or cut if data.overlong says so."
            if cut
            else ""
        )
        + (
            " Refused: chats that the template cannot write, or without a learned reply; they were passed over."
            if refused
            else ""
        )
    )
    return Table("Data that was drawn", head, rows, note) if rows else None


def _drawn_row(part: Mapping[str, Any]) -> list[str]:
    """What one source gave; data.json of earlier versions does not count repeats."""
    shares = [f"{part[name]:.1%}" for name in ("share", "asked")]
    counts = [f"{part[name]:,}" if name in part else "" for name in ("tokens", "pieces", "epochs", "repeats")]
    return [str(part["name"]), "replayed" if part["replayed"] else "new", *shares, *counts]


def _too_long(part: Mapping[str, Any]) -> int:
    """How many chats were left out, wholly or in part; data.json of earlier versions calls them left_out."""
    return int(part.get("too_long", part.get("left_out", 0))) + int(part.get("shortened", 0))


def packing_table(packed: Mapping[str, Mapping[str, Any] | None]) -> Table | None:
    """Show how much padding packing saved in each arm; None if nothing was packed. packed: by arm, from `Packing`."""
    names = ("conversations", "rows", "tokens", "computed", "padded")
    rows = tuple(
        (arm, *(f"{one[name]:,}" for name in names), f"{one['saved']:.1%}") for arm, one in packed.items() if one
    )
    head = ("arm", "conversations", "rows", "tokens", "with padding", "without packing", "saved")
    note = (
        "With padding: tokens that the model read, each row padded to the longest of its batch. Without packing: the "
        "same with one conversation in a row. The loss is the same."
    )
    return Table("Packed conversations", head, rows, note) if rows else None


def overlap_table(overlaps: Sequence[Overlap]) -> Table | None:
    """Show which measured questions are in the training data; None if there are none."""
    rows = tuple(
        (one.task, one.source, f"{one.items:,}", f"{one.same:,}", f"{one.similar:,}", _pair(one.examples))
        for one in overlaps
    )
    head = ("task", "training data", "questions", "the same", "similar", "for example")
    note = (
        f"The same: but for case and punctuation. Similar: half or more of its sequences of {N} words are in the "
        "training data, without those that more than a tenth of the task's questions share. Of a question with "
        f"{LEAST} to {N - 1} words, the answer included: all of them, in sequence. Data that is made anew or streamed "
        "is not searched."
    )
    return Table("Questions in the training data", head, rows, note) if rows else None


def _pair(examples: Sequence[Sequence[str]]) -> str:
    return " / ".join(text.replace("\n", " ") for text in examples[0]) if examples else ""


def cost_table(results: Sequence[ArmResult]) -> Table | None:
    """Show the costs that the main table does not have; None without any."""
    costs = [f for f in FIGURES.values() if f.suite == "cost" and not f.tables]
    titles = {name: f.title for f in costs if any((name := f.name.removeprefix("cost/")) in r.cost for r in results)}
    rows = tuple((label(r), *(_count(r.cost.get(name)) for name in titles)) for r in results if r.cost)
    note = "Added at inference: parameters that the trained model has beyond the base."
    return Table("Cost", ("arm", *titles.values()), rows, note) if rows else None


def _count(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def posthoc_table(results: Sequence[ArmResult], arms: Sequence[ArmResult] = ()) -> Table | None:
    """Show operations on trained weights, measured as the arms were (`experiments.posthoc`).

    It names the step of the weights if the arm has the figures of a later one (`training.keep: best`).
    """
    if not results:
        return None
    name, last = gain_name(results), {(arm.arm, arm.learning_rate): arm.steps for arm in arms}
    rows = tuple(
        (
            label(r),
            f"{r.operation}" + ("" if last.get((r.arm, r.learning_rate), r.steps) == r.steps else f", step {r.steps}"),
            gain_text(r.scorecard, name),
            *(figure_text(r.scorecard, other) for other in OTHERS),
        )
        for r in results
    )
    head = ("arm", "operation", "gain", *(FIGURES[other].title for other in OTHERS))
    return Table("Operations after training", head, rows, "Nothing was trained for these: the weights were changed.")


def alignment_pictures(last: Mapping[str, Sequence[Record]]) -> list[tuple[str, Figure]]:
    """Draw heat maps by layer from the records of suite `alignment`; none if it was not measured.

    One of hidden states and weights against the base's, one of the two branches of expanded layers. last: by arm, the
    records of its last evaluation.
    """
    from experiments.evaluation.suites.alignment import records_table

    pictures = []
    for form, title, words in ALIGNMENT:
        tables = {name: records_table(records, form) for name, records in last.items()}
        found = {name: table for name, table in tables.items() if len(table)}
        if found:
            pictures.append((title, alignment_figure(found, words)))
    return pictures

"""Write below a figure what it rests on: how many questions and seeds, and what its intervals are."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.records import Record

GREY = "#5b6470"
CHARACTERS = 14  # of a caption in an inch of a figure
PARTS = {  # what is counted, and its name in a caption
    "new": "new", "kept": "kept", "replies": "replies of the base", "drift": "texts for KL", "text": "for perplexity",
}  # fmt: skip
SHARES = "shares, where no unit is named"


@dataclass(frozen=True)
class Asked:
    """How much the figures rest on. counts: questions by part (`PARTS`, or a suite's name). seeds: training runs."""

    counts: Mapping[str, int] = field(default_factory=dict)
    seeds: int = 1


def asked_in(config: Mapping[str, Any], records: Sequence[Record] = (), seeds: int = 1) -> Asked:
    """Read from the plain values of a run's config how many questions an arm answers.

    records: of the base, which say it of the new and the kept tasks: a file may have fewer questions than the config
    allows. Without them a number that the config does not say (`items: all`, files) is left out, and so is a suite
    whose settings it does not have (of an earlier version).
    """
    evaluation = config.get("evaluation", {})
    suites = evaluation.get("suites", {})
    kept, drift = (suites.get(name, {}) if isinstance(suites, Mapping) else {} for name in ("kept", "drift"))
    tasks, items = kept.get("tasks", ()), kept.get("items", 0)
    known = isinstance(items, int) and all(isinstance(task, str) for task in tasks)
    found = {"new": _new_items(config) if "new" in suites else 0}
    found |= {"kept": items * len(tasks) if known else 0, "replies": drift.get("replies", 0)}
    found |= {part: count for part, count in asked_of(records).counts.items() if part in ("new", "kept")}
    return Asked({part: count for part, count in found.items() if count}, seeds)


def _new_items(config: Mapping[str, Any]) -> int:
    """Return how many questions are held out of all new sources; 0 if test files decide it."""
    sources = config.get("data", {}).get("new") or [{}]
    if any(source.get("test") for source in sources):
        return 0
    return int(config["evaluation"].get("new_items", 0)) * len(sources)


def asked_of(records: Sequence[Record]) -> Asked:
    """Count the questions that a model answered, by suite. A question that is asked in two forms is one.

    Next to new questions that are graded, those with a likelihood do not count: the gain is of the others.
    """
    graded = {(r.task, r.item) for r in records if r.suite == "new" and r.correct is not None}
    found = {suite: {(r.task, r.item) for r in records if r.suite == suite} for suite in PARTS}
    found["new"] = graded or found["new"]
    return Asked({suite: len(items) for suite, items in found.items() if items})


def caption(asked: Asked, unit: str, bars: str = "bars") -> str:
    """Say n, seeds, intervals and unit: `n: 80 new, 128 kept; 1 seed; bars: 95 % intervals over questions; shares`.

    unit: of the numbers, or SHARES. bars: how the figure draws intervals; empty: it has none.
    """
    counts = ", ".join(f"{count:,} {PARTS.get(part, part)}" for part, count in asked.counts.items() if count)
    over = "seeds and questions" if asked.seeds > 1 else "questions"
    parts = [
        f"n: {counts}" if counts else "",
        f"{asked.seeds} seed{'' if asked.seeds == 1 else 's'}",
        f"{bars}: 95 % intervals over {over}" if bars else "no intervals",
        unit,
    ]
    return "; ".join(part for part in parts if part)


def write_caption(figure: Figure, text: str) -> None:
    """Write a caption into a figure: above the entries of its legend, else at its lower edge.

    Lines are broken where the figure ends.
    """
    text = "\n".join(textwrap.fill(line, int(figure.get_figwidth() * CHARACTERS)) for line in text.split("\n"))
    if not figure.legends:
        figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=GREY)
        return
    legend = figure.legends[0]
    title = legend.get_title().get_text()
    legend.set_title(f"{text}\n{title}" if title and title != "None" else text)
    legend.get_title().set(fontsize=9, color=GREY)
    legend.set_alignment("left")

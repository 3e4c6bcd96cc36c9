"""Any runs side by side: their figures, and their differences on the items that all of them answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.common.errors import CompareError
from experiments.common.section import nearest
from experiments.comparison.inputs import Entry
from experiments.records import Estimate, Record
from experiments.reporting.text import figure_text
from experiments.scorecard.bootstrap import Array, estimate, harmonic
from experiments.scorecard.card import drawn_figures, estimated, scorecard
from experiments.scorecard.figures import GAINS, shown
from experiments.scorecard.inference import holm, non_inferior
from experiments.scorecard.pairing import Key
from experiments.scorecard.pairwise import Answers, net_correct, paired_p
from experiments.scorecard.sample import Sample
from experiments.scorecard.stream import stream_figures, stream_matrix
from experiments.scorecard.trajectory import drawn_trajectory, trajectory_figures

COMPARED = tuple(figure.name for figure in shown("compare"))


@dataclass(frozen=True)
class Difference:
    """A figure of an entry less that of the reference, draw by draw. p: `paired_p`; p_holm: over the entries."""

    name: str
    figure: str
    value: Estimate
    p: float
    p_holm: float


@dataclass
class Comparison:
    """cards: figures by entry. items: common items by suite. matched_gain: where retention_matched is read off."""

    reference: str
    cards: dict[str, dict[str, Estimate]]
    differences: list[Difference] = field(default_factory=list)
    items: dict[str, int] = field(default_factory=dict)
    matched_gain: float | None = None
    notes: list[str] = field(default_factory=list)

    def figures(self) -> list[str]:
        """Those that an entry has, in the order of the tables."""
        return [name for name in COMPARED if any(name in card for card in self.cards.values())]


def compare(entries: Sequence[Entry], reference: str | None = None, draws: int = 10_000, seed: int = 0) -> Comparison:
    """Entries beside each other; those with records are cut to their common items and compared in pairs.

    reference: the entry that the others are compared with; default: the first. Holm's family is one figure over all
    entries. Raises CompareError for fewer than two entries, an unknown reference, or records that do not pair.
    """
    names = [entry.name for entry in entries]
    if len(entries) < 2 or len(set(names)) < len(names):
        raise CompareError(
            f"two or more runs with names of their own are needed, but got: {', '.join(names) or 'none'}"
        )
    reference = reference or names[0]
    if reference not in names:
        raise CompareError(f"the reference {reference!r} is none of the runs: {nearest(reference, names)}")
    known = {entry.name: entry for entry in entries if entry.after}
    result = Comparison(reference, {entry.name: dict(entry.figures) for entry in entries})
    for entry in entries:
        if entry.fault:
            result.notes.append(f"{entry.name}: {entry.fault}")
        if not entry.after:
            result.notes.append(f"{entry.name} has no item records here, so it is not in the differences")
    if known:
        try:
            _measure(result, common_items(list(known.values()), result), draws, seed)
        except ValueError as error:
            raise CompareError(str(error)) from error
    return result


def common_items(entries: Sequence[Entry], result: Comparison) -> list[Entry]:
    """The entries cut to the items that all of them have, with the same content; says how many were left out.

    A suite with no common item is cut from all, with a note.
    """
    sides = [records for entry in entries for records in (entry.base, *entry.checkpoints.values())]
    content = [{record.key: _content(record) for record in records} for records in sides]
    needs = [set(c) for c, records in zip(content, sides, strict=True) if any(r.suite != "drift" for r in records)]
    shared = set.intersection(*needs) if needs else set()
    drift = [{k for k in c if k[0] == "drift"} for c, r in zip(content, sides, strict=True) if _drifts(r)]
    shared |= set.intersection(*drift) if drift else set()
    shared = {key for key in shared if len({c[key] for c in content if key in c}) == 1}
    everything = set().union(*content)
    for suite in sorted({key[0] for key in everything}):
        have, most = (sum(key[0] == suite for key in keys) for keys in (shared, everything))
        result.items[suite] = have
        if have < most:
            result.notes.append(
                f"suite {suite}: {have} items are common to all runs, of {most}; only they are compared"
            )
    found = [
        replace(e, base=_cut(e.base, shared), checkpoints={s: _cut(r, shared) for s, r in e.checkpoints.items()})
        for e in entries
    ]
    if any(_digest(entry.base) != _digest(found[0].base) for entry in found):
        result.notes.append("the base models answer differently: each run is measured from its own base")
    return found


def _measure(result: Comparison, entries: Sequence[Entry], draws: int, seed: int) -> None:
    drawn: dict[str, dict[str, Array]] = {}
    for entry in entries:
        sample = Sample(entry.base, entry.after, draws, seed)
        drawn[entry.name] = drawn_figures(sample)
        result.cards[entry.name] = estimated(sample, drawn[entry.name])
    more = (
        _harmonic(drawn, result.reference),
        _streams(result, entries, draws, seed),
        _whole_trajectories(result, entries, draws, seed),
    )
    for of_steps in more:
        for name, figures in of_steps.items():
            result.cards[name] |= {figure: estimate(values) for figure, values in figures.items()}
            drawn[name] |= figures
    if result.reference in drawn:
        answers = {entry.name: net_correct([(entry.base, entry.after)]) for entry in entries}
        result.differences = differences(drawn, answers, result.reference)


def differences(
    drawn: Mapping[str, Mapping[str, Array]], answers: Mapping[str, Answers], reference: str
) -> list[Difference]:
    """Every figure of every other entry less the reference's, with `paired_p` and Holm's over the entries."""
    found = []
    for figure in COMPARED:
        if figure not in drawn[reference]:
            continue
        own = drawn[reference][figure]
        others = {n: f[figure] for n, f in drawn.items() if n != reference and figure in f}
        p = [paired_p(figure, values, own, answers[n], answers[reference]) for n, values in others.items()]
        for (name, values), raw, adjusted in zip(others.items(), p, holm(p), strict=True):
            found.append(Difference(name, figure, estimate(values - own), raw, adjusted))
    return found


def _harmonic(drawn: Mapping[str, Mapping[str, Array]], reference: str) -> dict[str, dict[str, Array]]:
    """average_harmonic by entry: of its retention and its gain over the reference's; none where that gained nothing."""
    of_reference = drawn.get(reference, {})
    gain = next((name for name in GAINS if name in of_reference), None)
    if gain is None or not of_reference[gain][0] > 0:
        return {}
    return {
        name: {"average_harmonic": harmonic(figures["retention"], figures[gain] / of_reference[gain][0])}
        for name, figures in drawn.items()
        if {gain, "retention"} <= figures.keys()
    }


def _streams(result: Comparison, entries: Sequence[Entry], draws: int, seed: int) -> dict[str, dict[str, Array]]:
    """`stream_figures` by entry that came to the end of its stream; none where the streams are of other tasks."""
    found = {e.name: e for e in entries if e.stages and set(e.stages.values()) <= e.checkpoints.keys()}
    if len({tuple(e.stages) for e in found.values()}) > 1:
        result.notes.append("the streams are of other tasks, or in another order: their figures are not compared")
        return {}
    try:
        return {name: stream_figures(_matrix(entry, draws, seed)) for name, entry in found.items()}
    except ValueError as error:
        result.notes.append(f"no figures of the stream: {error}")
        return {}


def _matrix(entry: Entry, draws: int, seed: int) -> Array:
    sides = (entry.base, *(entry.checkpoints[step] for step in entry.stages.values()))
    return stream_matrix([[r for r in side if r.suite == "new"] for side in sides], list(entry.stages), draws, seed)


def _whole_trajectories(
    result: Comparison, entries: Sequence[Entry], draws: int, seed: int
) -> dict[str, dict[str, Array]]:
    """`trajectory_figures` by entry; none where a suite is missing."""
    gains = {next((g for g in GAINS if g in result.cards[e.name]), None) for e in entries}
    if len(gains) != 1 or None in gains or any("retention" not in result.cards[e.name] for e in entries):
        return {}
    paths = {e.name: drawn_trajectory(e.base, e.checkpoints, draws, seed) for e in entries}
    result.matched_gain, figures = trajectory_figures(paths)
    if idle := [name for name in paths if "area" not in figures[name]]:
        result.notes.append(f"no gain outside its interval, so no retention at matched gain: {', '.join(idle)}")
    return figures


def gate(entry: Entry, margin: float, draws: int = 10_000, seed: int = 0) -> tuple[bool, str]:
    """(passed, one line): passed only if the arm finished and the upper 95 % bound of its forgetting is below margin.

    Raises CompareError where the arm or its base has no records of kept tasks, or the margin is none.
    """
    if entry.fault:
        return False, f"FAIL  {entry.name}: {entry.fault}"
    try:
        card = scorecard(entry.base, entry.after, draws, seed)
        if "forgetting" not in card:
            raise CompareError(f"{entry.name} has no records of kept tasks: the gate has nothing to judge")
        bound = card["forgetting_bound"].value
        passed = non_inferior(bound, margin)
    except ValueError as error:
        raise CompareError(str(error)) from error
    text = figure_text(card, "forgetting")
    sign = "<" if passed else ">=" if np.isfinite(bound) else "against"
    tasks = sorted({record.task for record in entry.after if record.suite == "kept"})
    of = (
        f" of {', '.join(tasks[:6])}{f' and {len(tasks) - 6} more' if len(tasks) > 6 else ''}" if len(tasks) > 1 else ""
    )
    verdict = "pass" if passed else "FAIL"
    return passed, f"{verdict}  {entry.name}: forgetting{of} {text}, bound {bound:.4f} {sign} {margin:g}"


def by_task(entry: Entry) -> list[Entry]:
    """The entry's last checkpoint cut to each kept task alone, for a gate on each: a mean over tasks can hide one."""
    kept = [record for record in entry.after if record.suite == "kept"]
    return [
        replace(
            entry,
            name=f"{entry.name}, {task}",
            base=[r for r in entry.base if r.suite == "kept" and r.task == task],
            checkpoints={1: [r for r in kept if r.task == task]},
        )
        for task in sorted({record.task for record in kept})
    ]


def _content(record: Record) -> tuple[object, ...]:
    """What must be equal for two records of one key to be of one item: its tokens, options and question."""
    prompt = getattr(record, "prompt", None)
    return (record.tokens if record.form in ("nll", "kl") else None, tuple(sorted(record.options or ())), prompt)


def _drifts(records: Iterable[Record]) -> bool:
    return any(record.suite == "drift" for record in records)


def _digest(records: Iterable[Record]) -> frozenset[tuple[Key, int | None, float | None]]:
    return frozenset((record.key, record.correct, record.value) for record in records if record.suite != "drift")


def _cut(records: Iterable[Record], keys: set[Key]) -> list[Record]:
    return [record for record in records if record.key in keys]

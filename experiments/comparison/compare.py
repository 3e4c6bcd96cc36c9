"""Compare any runs: their figures, and their differences on the items that all of them answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from experiments.common.errors import CompareError
from experiments.common.section import nearest
from experiments.comparison.folders import ComparedRun
from experiments.records import Estimate, Record
from experiments.reporting.summary import unequal_tokens
from experiments.scorecard.bootstrap import Array, check_draws, estimate, harmonic, ratio
from experiments.scorecard.card import drawn_figures, estimated
from experiments.scorecard.differences import COMPARED, Difference, differences
from experiments.scorecard.figures import GAINS
from experiments.scorecard.flips import distinct_keys
from experiments.scorecard.pairing import Key, facts
from experiments.scorecard.pairwise import net_correct
from experiments.scorecard.sample import Sample
from experiments.scorecard.stream import stream_figures, stream_matrix
from experiments.scorecard.trajectory import drawn_trajectory, trajectory_figures
from experiments.scorecard.units import unit_values


@dataclass
class Comparison:
    """The result of `compare`. cards: figures by run. items: number of common items by suite, each form of a
    question for itself; questions: without the forms. matched_gain: the gain at which retention_matched is read; None
    if no run gains. methods: method and learning rate by run, if they are known.
    """

    reference: str
    cards: dict[str, dict[str, Estimate]]
    differences: list[Difference] = field(default_factory=list)
    items: dict[str, int] = field(default_factory=dict)
    matched_gain: float | None = None
    notes: list[str] = field(default_factory=list)
    methods: dict[str, tuple[str, float]] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)

    def figures(self) -> list[str]:
        """List the figures that a run has, in the order of the tables."""
        return [name for name in COMPARED if any(name in card for card in self.cards.values())]


def compare(
    runs: Sequence[ComparedRun], reference: str | None = None, draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare runs on the items that they have in common, each with the reference.

    reference: the run that the others are compared with; default: the first that finished. Holm's family is one figure
    over all runs. One run alone is measured from its base. Raises CompareError for no run, two of one name, an unknown
    reference, or records that do not pair.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise CompareError(f"runs with names of their own are needed, but got: {', '.join(names) or 'none'}")
    try:
        check_draws(draws)
    except ValueError as error:
        raise CompareError(f"--{error}") from error
    known = {run.name: run for run in runs if run.after}
    result = Comparison(_reference(runs, reference), {run.name: dict(run.figures) for run in runs})
    result.methods = {run.name: (run.method, run.learning_rate) for run in runs if run.method}
    for run in runs:
        if run.fault:
            result.notes.append(f"{run.name}: {run.fault}")
        result.notes += [f"{run.name}: left out: {reason}" for reason in run.left_out]
        result.notes += [f"{run.name}: {run.remark}"] if run.remark else []
        if not run.after:
            result.notes.append(f"{run.name} has no item records here, so it is not in the differences")
    result.notes += filter(None, [unequal_tokens({run.name: run.tokens for run in runs})])
    if len(runs) == 1:
        result.notes.append("one run alone, measured from its base: name another to compare it with")
    if not reference and result.reference != names[0]:
        result.notes.append(f"the reference is {result.reference}: no run before it finished and has item records here")
    if known:
        try:
            _measure(result, common_items(list(known.values()), result), draws, seed)
        except ValueError as error:
            raise CompareError(str(error)) from error
    return result


def _reference(runs: Sequence[ComparedRun], asked: str | None) -> str:
    """Return the run that the others are compared with: as in a run's report, one that failed is the last resort."""
    names, known = [run.name for run in runs], [run.name for run in runs if run.after]
    if not asked:
        return next((run.name for run in runs if run.after and not run.fault), (known or names)[0])
    if asked not in names:
        raise CompareError(f"the reference {asked!r} is none of the runs: {nearest(asked, names)}")
    if known and asked not in known:
        raise CompareError(f"the reference {asked!r} has no item records here: give one of {', '.join(known)}")
    return asked


def common_items(runs: Sequence[ComparedRun], result: Comparison) -> list[ComparedRun]:
    """Cut the runs to the items that all of them have with the same content; note how many were left out.

    A suite with no common item is cut from all, with a note.
    """
    sides = [records for run in runs for records in (run.base, *run.checkpoints.values())]
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
        result.questions[suite] = len({(key[1], key[3]) for key in shared if key[0] == suite})
        if have < most:
            result.notes.append(
                f"suite {suite}: {have} items are common to all runs, of {most}; only they are compared"
            )
    found = [
        replace(e, base=_cut(e.base, shared), checkpoints={s: _cut(r, shared) for s, r in e.checkpoints.items()})
        for e in runs
    ]
    if any(_digest(run.base) != _digest(found[0].base) for run in found):
        result.notes.append("the base models answer differently: each run is measured from its own base")
    graded = {run.name: run.graded for run in runs if run.graded}
    named = result.items.get("new") and len(set(graded.values())) > 1
    if named:
        by = ", ".join(f"{name} by {grader}" for name, grader in graded.items())
        result.notes.append(f"replies to the new task are graded in several ways, so gains do not compare: {by}")
    tasks = {(key[0], key[1]) for key in shared}
    result.notes += _graded_in_several_ways(runs, [one for one in tasks if one[0] != "new" or not named])
    result.notes += _cut_in_several_ways(runs, tasks)
    return found


def _graded_in_several_ways(runs: Sequence[ComparedRun], tasks: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Say of which tasks, (suite, task), other replies count as right in one run than in another."""
    for suite, task in sorted(tasks):
        ways: dict[str, list[str]] = {}
        for run in runs:
            if (suite, task) in run.grading:
                ways.setdefault(run.grading[suite, task], []).append(run.name)
        if len(ways) > 1:
            said = f"replies to {suite} task {task} are graded in several ways, so they do not compare"
            yield f"{said} (another grader, or another version of its code): {'; '.join(map(', '.join, ways.values()))}"


def _cut_in_several_ways(runs: Sequence[ComparedRun], tasks: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Say of which tasks, (suite, task), the replies could be longer in one run than in another."""
    for suite, task in sorted(tasks):
        room = {run.name: run.room[suite, task] for run in runs if (suite, task) in run.room}
        if len(set(room.values())) > 1:
            tokens = ", ".join(f"{name} at {most}" for name, most in room.items())
            said = f"replies to {suite} task {task} are cut at several numbers of tokens, so they do not compare"
            yield f"{said}: {tokens}"


def _measure(result: Comparison, runs: Sequence[ComparedRun], draws: int, seed: int) -> None:
    drawn: dict[str, dict[str, Array]] = {}
    keys = distinct_keys({run.name: run.after for run in runs})
    for run in runs:
        sample = Sample(run.base, run.after, draws, seed, key=keys[run.name])
        drawn[run.name] = drawn_figures(sample)
        result.cards[run.name] = estimated(sample, drawn[run.name])
    more = (
        _harmonic(drawn, result.reference),
        _streams(result, runs, draws, seed),
        _whole_trajectories(result, runs, draws, seed),
    )
    for of_steps in more:
        for name, figures in of_steps.items():
            result.cards[name] |= {figure: estimate(values) for figure, values in figures.items()}
            drawn[name] |= figures
    if result.reference in drawn:
        answers = {run.name: net_correct([(run.base, run.after)]) for run in runs}
        units = {run.name: unit_values([(run.base, run.after)]) for run in runs}
        result.differences = differences(drawn, answers, result.reference, units)


def _harmonic(drawn: Mapping[str, Mapping[str, Array]], reference: str) -> dict[str, dict[str, Array]]:
    """Compute average_harmonic by run, with the gain of the reference; none if the reference gained nothing.

    The reference's gain is not known better than the others': taken as exact, intervals covered 78 to 87 times in 100.
    """
    of_reference = drawn.get(reference, {})
    gain = next((name for name in GAINS if name in of_reference), None)
    if gain is None or not of_reference[gain][0] > 0:
        return {}
    return {
        name: {"average_harmonic": harmonic(figures["retention"], ratio(figures[gain], of_reference[gain]))}
        for name, figures in drawn.items()
        if {gain, "retention"} <= figures.keys()
    }


def _streams(result: Comparison, runs: Sequence[ComparedRun], draws: int, seed: int) -> dict[str, dict[str, Array]]:
    """Compute `stream_figures` of each run that reached the end of its stream; none if the streams differ in tasks."""
    found = {e.name: e for e in runs if e.stages and set(e.stages.values()) <= e.checkpoints.keys()}
    if len({tuple(e.stages) for e in found.values()}) > 1:
        result.notes.append("the streams are of other tasks, or in another order: their figures are not compared")
        return {}
    try:
        return {name: stream_figures(_matrix(run, draws, seed)) for name, run in found.items()}
    except ValueError as error:
        result.notes.append(f"no figures of the stream: {error}")
        return {}


def _matrix(run: ComparedRun, draws: int, seed: int) -> Array:
    sides = (run.base, *(run.checkpoints[step] for step in run.stages.values()))
    there = {r.task for r in run.base if r.suite == "new"}
    if lost := [task for task in run.stages if task not in there]:  # of a run alone `stream_matrix` says why
        raise ValueError(f"no item of task {lost[0]!r} is common to all runs and stages")
    return stream_matrix([[r for r in side if r.suite == "new"] for side in sides], list(run.stages), draws, seed)


def _whole_trajectories(
    result: Comparison, runs: Sequence[ComparedRun], draws: int, seed: int
) -> dict[str, dict[str, Array]]:
    """Compute `trajectory_figures` by run; none if a suite is missing."""
    gains = {next((g for g in GAINS if g in result.cards[e.name]), None) for e in runs}
    if len(gains) != 1 or None in gains or any("retention" not in result.cards[e.name] for e in runs):
        return {}
    keys = distinct_keys({e.name: _of_suites(e, "new", "kept") for e in runs})
    paths = {e.name: drawn_trajectory(e.base, e.checkpoints, draws, seed, keys[e.name]) for e in runs}
    result.matched_gain, figures = trajectory_figures(paths)
    if idle := [name for name in paths if "area" not in figures[name]]:
        result.notes.append(f"no gain outside its interval, so no retention at matched gain: {', '.join(idle)}")
    return figures


def _of_suites(run: ComparedRun, *suites: str) -> list[Record]:
    return [record for records in run.checkpoints.values() for record in records if record.suite in suites]


def _content(record: Record) -> tuple[object, ...]:
    """Return what two records of one key must have in common to be of one item: tokens, options, answer, question."""
    options, answer = facts(record)
    return record.tokens if record.form in ("nll", "kl") else None, tuple(options or ()), answer, record.prompt


def _drifts(records: Iterable[Record]) -> bool:
    return any(record.suite == "drift" for record in records)


def _digest(records: Iterable[Record]) -> frozenset[tuple[Key, int | None, float | None]]:
    return frozenset((record.key, record.correct, record.value) for record in records if record.suite != "drift")


def _cut(records: Iterable[Record], keys: set[Key]) -> list[Record]:
    return [record for record in records if record.key in keys]

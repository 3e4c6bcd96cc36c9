"""What a run measures that is also in its training data: searched once, said at the start, shown in the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.files import read_note, write_json
from experiments.common.hashing import json_digest, short_digest
from experiments.data.items import NewText
from experiments.data.overlap import LETTERS, Overlap, Probe, overlaps, question_probe
from experiments.data.source import free
from experiments.data.tested import Measured
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.suites.kept import KeptSuite
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.runs.data import ExperimentData

VERSION = 5  # of the search: raise it when a change of the code changes what is found


@dataclass(frozen=True)
class Searched:
    """Overlaps by source and task. left_out: rows that ask a question of another test set, by the label of a source."""

    overlaps: tuple[Overlap, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Say what was found, one line each."""
        for source, count in self.left_out.items():
            rows, asks = ("rows", "ask") if count > 1 else ("row", "asks")
            yield f"source {source}: {count:,} {rows} left out of training: {asks} a question of a test set"
        for one in self.overlaps:
            parts = [f"{one.same:,} but for case and punctuation"] * (one.same > 0)
            parts += [f"{one.similar:,} in half of the word sequences"] * (one.similar > 0)
            measured, trained = (text.replace("\n", " ")[: LETTERS // 2] for text in one.examples[0])
            yield (
                f"overlap: of {one.items:,} questions of {one.task} some are in the training data {one.source} "
                f"({' and '.join(parts)}), such as {measured!r}: {trained!r}"
            )


def search(data: ExperimentData, suites: Suites, cache: Path, digests: Sequence[str]) -> Searched:
    """Look for what is measured in all sources that are stored as a whole, or read what an earlier run found.

    digests: of the sources. What is made anew or streamed is not searched.
    """
    probes = [*_new(data), *_kept(suites)]
    names = [source.label for source in (*data.new, *data.old)]  # a digest is of the rows alone
    key = short_digest(str(VERSION), *digests, *names, repr(probes), *sorted(data.held_out_ids))
    file = cache / "overlap" / f"{key}.json"
    note = read_note(file)
    known = note.get("found")
    if not known or note.get("digest") != json_digest(known) or note.get("key", key) != key:  # not there, or changed
        known = _plain(_search(data, probes))
        write_json(file, {"found": known, "digest": json_digest(known), "key": key})
    return Searched(tuple(Overlap(**one) for one in known["overlaps"]), known["left_out"])


def _search(data: ExperimentData, probes: Sequence[Probe]) -> Searched:
    found: list[Overlap] = []
    left_out: dict[str, int] = {}
    pairs = [*zip(data.new, data.held_out_of, strict=True), *((source, frozenset[str]()) for source in data.old)]
    for source, ids in pairs:
        if source.size is None:
            continue
        stored = source.stored()
        rows = stored if isinstance(stored, Sequence) else tuple(stored)
        trained = free(rows, data.held_out_ids)
        found += overlaps(probes, rows, source.label, trained)
        other = isinstance(source, Measured) and source.test is not None and not source.test.of_training
        own = frozenset[str]() if other else ids  # rows that the source holds out of its own are no loss
        if lost := len(free(rows, own)) - len(trained):
            left_out[source.label] = left_out.get(source.label, 0) + lost
    return Searched(tuple(found), left_out)


def _new(data: ExperimentData) -> Iterator[Probe]:
    for task in data.tasks:
        if isinstance(task, NewText):
            yield from (Probe("new", task.name, text, (text,)) for text in task.documents)
        else:
            yield from (question_probe("new", task.name, item) for item in task.test)


def _kept(suites: Suites) -> Iterator[Probe]:
    """Yield the probes of kept tasks, and of all tasks of lm_eval."""
    suite = suites.suites.get(KeptSuite.name)
    if isinstance(suite, KeptSuite):
        yield from map(_probe, suite.questions)
        yield from (question_probe("kept", task.name, item) for task in suite.written for item in task.test)
    harness = suites.suites.get(HarnessSuite.name)
    if isinstance(harness, HarnessSuite):
        yield from (Probe(side, task, text, (text,)) for (side, task, _), text in harness.questions().items())


def _probe(question: Question) -> Probe:
    template = question.template
    statements = (f"{template.plain} {template.right}", f"{template.chat} {template.right}")
    return Probe("kept", question.task, template.chat, statements)


def _plain(found: Searched) -> dict[str, Any]:
    return {"overlaps": [one.plain() for one in found.overlaps], "left_out": found.left_out}

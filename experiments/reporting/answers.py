"""Show answers that turned: those that a model lost most clearly, and those that it won. A rule chooses them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from experiments.common.errors import DamagedError
from experiments.common.files import read_json, read_note, write_json, write_text
from experiments.common.hashing import file_digest
from experiments.common.owner import other_than, owner_of
from experiments.evaluation.suite import DrawnSuite
from experiments.evaluation.suites.instructions import InstructionSuite
from experiments.evaluation.suites.kept import KeptSuite
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.evaluation.suites.new_task import NewTaskSuite
from experiments.records import Record
from experiments.reporting.table import Row, Table
from experiments.scorecard.pairing import pair_records

ANSWERS = ("kept", "instructions")  # suites of what the base knew
SHOWN, FEW = 5, 2  # answers of one arm: lost ones; won ones, and lost ones in a report with many arms
MANY = 4  # arms
WORDS = {(True, False): "lost", (False, True): "won", (True, True): "kept"}  # right before, right after
LONGEST = 70  # characters of a cell
HEAD = ("arm", "turned", "task", "question", "right", "before", "after")
FILE = "answers.json"  # of a run: the table, which MLflow and the report of a study show too
WRITTEN = "answers-written.json"  # digest of that file, and its run: MLflow's table has no place for more values
Questions = Mapping[tuple[str, str, str, str], str]  # text by the key of a record


@dataclass(frozen=True)
class Turned:
    """An answer that was right before and is wrong after, or the other way round.

    clarity: how far the right option's lead over the best wrong one changed, in nats.
    """

    task: str
    question: str
    right: str
    before: str
    after: str
    clarity: float = 0.0


def lost_answers(
    base: Sequence[Record], records: Sequence[Record], questions: Questions, count: int = SHOWN
) -> list[Turned]:
    """Return the answers that were lost most clearly, one for each question: of kept tasks and replies in turn.

    questions: see `question_texts`.
    """
    return _turned(base, records, questions, count, won=False)


def won_answers(
    base: Sequence[Record], records: Sequence[Record], questions: Questions, count: int = FEW
) -> list[Turned]:
    """Return the answers that were won most clearly, as `lost_answers` does."""
    return _turned(base, records, questions, count, won=True)


def _turned(
    base: Sequence[Record], records: Sequence[Record], questions: Questions, count: int, won: bool
) -> list[Turned]:
    found: dict[tuple[str, str, str], Turned] = {}
    for r0, r in pair_records(base, records):
        if r.suite in ANSWERS and r.correct is not None and (bool(r0.correct), bool(r.correct)) == (not won, won):
            one = _answer(r0, r, questions.get(r.key) or questions.get((r.suite, r.task, "", r.item), r.item))
            known = found.get((r.suite, r.task, r.item))
            if known is None or known.clarity < one.clarity:
                found[r.suite, r.task, r.item] = one
    by_suite = [[one for key, one in found.items() if key[0] == suite] for suite in ANSWERS]
    ranked = [sorted(ones, key=lambda one: -one.clarity) for ones in by_suite]
    return [one for row in zip_longest(*ranked) for one in row if one is not None][:count]


def all_answers(base: Sequence[Record], records: Sequence[Record], questions: Questions) -> list[tuple[str, Turned]]:
    """Return every answer that was lost, won or kept, with that word, also of the new task: the clearest of each first.

    A kept answer is right before and after; those whose lead changed most come first. Each question once per word.
    """
    found: dict[tuple[str, str, str, str], Turned] = {}
    for r0, r in pair_records(base, records):
        word = WORDS.get((bool(r0.correct), bool(r.correct)))
        if r.suite in (*ANSWERS, "new") and r.correct is not None and word:
            one = _answer(r0, r, questions.get(r.key) or questions.get((r.suite, r.task, "", r.item), r.item))
            key = (word, r.suite, r.task, r.item)
            if key not in found or found[key].clarity < one.clarity:
                found[key] = one
    ranked = sorted(found.items(), key=lambda pair: -pair[1].clarity)
    return [(key[0], one) for word in WORDS.values() for key, one in ranked if key[0] == word]


def turned_table(base: Sequence[Record], arms: Mapping[str, Sequence[Record]], questions: Questions) -> Table | None:
    """Show lost and won answers of each arm of a run; None if no answer turned. arms: the last records by label."""
    lost = SHOWN if len(arms) <= MANY else FEW
    rows = [
        (name, kind, *cells(one))
        for name, records in arms.items()
        for kind, found in (
            ("lost", lost_answers(base, records, questions, lost)),
            ("won", won_answers(base, records, questions)),
        )
        for one in found
    ]
    if not rows:
        return None
    return Table("Answers that turned", HEAD, tuple(rows), rule(lost))


def write_turned(folder: Path, table: Table) -> None:
    """Write the table to a run's folder, and the digest that `read_turned` compares."""
    write_text(folder / FILE, json.dumps({"columns": table.head, "data": table.rows}))
    write_json(folder / WRITTEN, {"digest": file_digest(folder / FILE), "owner": owner_of(folder)})


def read_turned(folder: Path) -> list[Row]:
    """Return the rows of a run's table; none without it. Raises DamagedError if it is not as this run wrote it.

    Earlier versions noted no digest.
    """
    noted, file = read_note(folder / WRITTEN), folder / FILE
    rows = read_json(file).get("data", [])
    if not file.is_file() or not noted:
        return list(rows)
    if noted.get("digest") != file_digest(file) or other_than(noted.get("owner", {}), owner_of(folder)):
        raise DamagedError(f"{file} was changed, or is of another run: delete it, and run the same config again")
    return list(rows)


def rule(lost: int) -> str:
    """Say which answers a table of so many lost ones shows."""
    return (
        f"At most {lost} lost and {FEW} won kept answers of each arm: those whose right option lost or won most of its "
        "lead, each question once."
    )


def cells(one: Turned) -> tuple[str, ...]:
    """Return an answer as cells of a table: task, question, right answer, before, after. Long texts are cut."""
    return (one.task, *map(_short, (one.question, one.right, one.before, one.after)))


def question_texts(suites: Iterable[DrawnSuite]) -> dict[tuple[str, str, str, str], str]:
    """Return the text of each question of suites by the key of its record: records hold only its digest.

    Of lm_eval's tasks the form in the key is empty: it has several.
    """
    texts: dict[tuple[str, str, str, str], str] = {}
    for suite in suites:
        if isinstance(suite, KeptSuite):
            for q in suite.questions:
                chat, plain = q.template.chat, f"{q.template.plain} ..."
                texts |= {(suite.name, q.task, form, q.id): chat for form in ("chat", "generate")}
                texts[suite.name, q.task, "plain", q.id] = plain
            written = [(task.name, item) for task in suite.written for item in task.test]
            texts |= {(suite.name, name, "generate", item.id): item.question for name, item in written}
        elif isinstance(suite, InstructionSuite):
            texts |= {(suite.name, item.kind, "generate", item.id): item.prompt for item in suite.items}
        elif isinstance(suite, HarnessSuite):
            texts |= {(side, name, "", item): text for (side, name, item), text in suite.questions().items()}
        elif isinstance(suite, NewTaskSuite):
            asked = [(task.name, item) for task in suite.tasks for item in getattr(task, "test", ())]
            forms = ("chat", *suite.settings.forms)
            texts |= {(suite.name, name, form, item.id): item.question for name, item in asked for form in forms}
    return texts


def _answer(r0: Record, r: Record, question: str) -> Turned:
    if r0.choice is None or r.choice is None or not r.options:
        return Turned(r.task, question, str(r.answer or ""), r0.reply or "", r.reply or "")
    right = _right(r0, r)
    clarity = abs(_lead(r0, right) - _lead(r, right))
    return Turned(r.task, question, r.options[right], _option(r0), _option(r), clarity)


def _right(r0: Record, r: Record) -> int:
    """Return the index of the right option, which one of both chose. lm_eval may note a text, or several answers."""
    if isinstance(r.answer, int):
        return r.answer
    right = r0 if r0.correct else r
    return (r.options or ()).index(_option(right))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def _option(record: Record) -> str:
    return (record.options or ())[record.choice or 0]


def _lead(record: Record, right: int) -> float:
    """Return the log-likelihood of the right option less that of the best wrong one. right: its index."""
    scores = record.scores or ()
    return scores[right] - max(score for i, score in enumerate(scores) if i != right)

"""Files of a run are damaged in turn: the run heals each, or refuses it by name. No traceback, no other figures.

This is a sample; `python -m tests.helpers.damage` does every file in every way, of studies and measurements too.
"""

from __future__ import annotations

import pytest

from tests.helpers.damage import DAMAGES, HEALED, REFUSED, Case, Roots, check, every, rotated
from tests.helpers.damaged import SUBJECTS

pytestmark = pytest.mark.slow
# subject, a part of the path, damage: what gave other figures in silence, or ended in a traceback, before it was mended
FOUND = [
    ("finished", "base/items.jsonl", "of another run"),
    ("finished", "result.json", "of another run"),
    ("finished", "items-4.jsonl", "missing"),
    ("finished", "base/timing.json", "missing"),
    ("interrupted", "checkpoint-3/optimizer.pt", "NUL"),
    ("interrupted", "checkpoint-3/model.safetensors", "of another run"),
    ("read", "base/items.jsonl", "empty"),
    ("read", "trained/model.safetensors", "of another run"),
]


@pytest.mark.parametrize(("name", "each"), [("finished", 4), ("interrupted", 7), ("read", 5)])
def test_a_damaged_file_is_healed_or_refused_by_name(name: str, each: int, roots: Roots) -> None:
    cases = rotated(roots, SUBJECTS[name], each)
    assert {case.damage for case in cases} == set(DAMAGES)
    assert check(roots, cases) == {}


@pytest.mark.parametrize(("name", "part", "damage"), FOUND)
def test_what_was_silent_once(name: str, part: str, damage: str, roots: Roots) -> None:
    (case,) = every(roots, SUBJECTS[name], [damage], part)
    roots.expected(case.subject)
    assert roots.judge(case) in (HEALED, REFUSED)


def test_a_fault_would_be_seen(roots: Roots) -> None:
    """The judge itself: a changed digit in a file that no digest covers is another fact."""
    subject = SUBJECTS["read"]
    (case,) = every(roots, subject, ["cut"], "trained/model.safetensors")
    roots.expected(subject)
    wrong = {**roots.facts, subject.name: {"gate": "another"}}
    other = Roots(roots.folder)
    other.facts = wrong
    assert other.judge(Case(subject, case.file, "cut")) == REFUSED
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DAMAGES, "cut", lambda file, other: None)
        assert other.judge(case).startswith("SILENT: other gate")

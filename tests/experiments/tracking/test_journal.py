"""The journal keeps every whole line, whatever happens to the last one, and notes what each store has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.tracking.journal import Delivered, Journal, find, journals


def steps(journal: Journal, offset: int = 0) -> list[int]:
    return [event["step"] for event, _ in journal.read(offset) if event["event"] == "metrics"]


def written(folder: Path, count: int) -> Journal:
    journal = Journal.create(folder, "arm full 0.001")
    journal.append("start", name="full")
    for step in range(count):
        journal.append("metrics", step=step, values={"loss": float("nan")})
    journal.close()
    return journal


def test_events_are_read_from_any_offset(tmp_path: Path) -> None:
    journal = written(tmp_path, 3)
    assert steps(journal) == [0, 1, 2]
    offsets = [offset for _, offset in journal.read()]
    assert [steps(journal, offset) for offset in offsets] == [[0, 1, 2], [1, 2], [2], []]
    assert offsets[-1] == journal.size
    assert list(Journal(tmp_path / "none.jsonl").read()) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_not_read_and_does_not_spoil_the_next(tmp_path: Path, cut: int) -> None:
    journal = written(tmp_path, 3)
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    again = Journal(journal.path)
    assert steps(again) == [0, 1]
    again.append("metrics", step=9, values={})
    assert steps(again) == ([0, 1, 2, 9] if cut == 1 else [0, 1, 9])  # cut by its end alone, the line is whole


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    journal = written(tmp_path, 1)
    with journal.path.open("ab") as file:
        file.write(b"\0\0\0\0\n[1]\n")
    journal.append("metrics", step=1, values={})
    assert steps(journal) == [0, 1]


def test_notes_are_kept_per_store_and_a_broken_note_means_nothing_was_delivered(tmp_path: Path) -> None:
    journal = written(tmp_path, 1)
    journal.note("sqlite:///a", Delivered("run-a", 10))
    journal.note("http://b", Delivered("run-b", 20))
    assert Journal(journal.path).delivered("sqlite:///a") == Delivered("run-a", 10)
    assert journal.delivered("http://c") == Delivered()
    assert find(tmp_path, "run-b") is not None
    assert find(tmp_path, journal.id) is not None
    assert find(tmp_path, "run-c") is None
    next(tmp_path.glob("*.delivered.json")).write_text("{")
    assert journal.delivered("sqlite:///a") == Delivered()


def test_a_run_is_over_when_its_latest_attempt_is(tmp_path: Path) -> None:
    journal = written(tmp_path, 1)
    assert not journal.ended()
    journal.append("end", status="KILLED")
    assert journal.ended()
    journal.append("start", name="again")
    assert not journal.ended()
    last = journal.last("start")
    assert last is not None
    assert last["name"] == "again"


def test_journals_come_in_the_order_in_which_their_runs_began(tmp_path: Path) -> None:
    child, parent = Journal.create(tmp_path / "a", "child"), Journal.create(tmp_path / "b", "parent")
    for journal, when in ((child, 2), (parent, 1)):
        journal.path.write_text(json.dumps({"event": "start", "time": when}) + "\n")
    assert [journal.id for journal in journals(tmp_path)] == [parent.id, child.id]
    assert journals(tmp_path / "nothing") == []

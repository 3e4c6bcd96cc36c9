"""The item records of an arm: what is written is read again, and each file is scored once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.records import Estimate, Record
from experiments.runs.arm_records import MEASURED, ArmRecords, is_whole


def records(right: int) -> list[Record]:
    return [Record("kept", "capitals", "chat", f"item {i}", correct=int(i < right)) for i in range(4)]


def arm_records(folder: Path, scored: list[int]) -> ArmRecords:
    def score(found: list[Record]) -> dict[str, Estimate]:
        right = sum(record.correct or 0 for record in found)
        scored.append(right)
        return {"kept_accuracy": Estimate(right / 4)}

    prepared: Any = SimpleNamespace(score=score, config=SimpleNamespace(evaluation_steps=[2, 4, 10]))
    return ArmRecords(prepared, folder)


def test_what_this_process_wrote_is_not_scored_again(tmp_path: Path) -> None:
    scored: list[int] = []
    first = arm_records(tmp_path, scored)
    assert first.figures() == first.files() == {}
    assert first.write(2, records(1)) == {"kept_accuracy": Estimate(0.25)}
    first.write(10, records(3))
    assert list(first.files()) == [2, 10]  # by number, not by name
    for _ in range(2):
        assert first.figures() == {2: {"kept_accuracy": Estimate(0.25)}, 10: {"kept_accuracy": Estimate(0.75)}}
    assert scored == [1, 3]
    assert first.read() == {2: records(1), 10: records(3)}


def test_records_of_a_step_at_which_the_run_does_not_measure_are_not_its_own(tmp_path: Path) -> None:
    first = arm_records(tmp_path, [])
    first.write(10, records(3))
    (tmp_path / "items-99.jsonl").write_text((tmp_path / "items-10.jsonl").read_text())
    assert list(first.files()) == list(first.figures()) == [10]


def test_what_an_earlier_process_wrote_is_scored_once(tmp_path: Path) -> None:
    arm_records(tmp_path, []).write(2, records(1))
    scored: list[int] = []
    later = arm_records(tmp_path, scored)
    later.write(4, records(2))
    for _ in range(2):
        assert later.figures() == {2: {"kept_accuracy": Estimate(0.25)}, 4: {"kept_accuracy": Estimate(0.5)}}
    assert scored == [2, 1]


def test_an_evaluation_that_is_repeated_replaces_its_figures(tmp_path: Path) -> None:
    """A resumed arm evaluates again the steps after its checkpoint."""
    once = arm_records(tmp_path, [])
    once.write(2, records(1))
    assert once.figures()[2] == {"kept_accuracy": Estimate(0.25)}
    once.write(2, records(4))
    assert once.figures()[2] == {"kept_accuracy": Estimate(1.0)}


def test_records_whose_note_is_damaged_are_not_known_to_be_whole(tmp_path: Path) -> None:
    """Earlier versions wrote no note; one that cannot be read says nothing about records that may be others."""
    arm_records(tmp_path, []).write(2, records(1))
    file, note = tmp_path / "items-2.jsonl", tmp_path / MEASURED
    assert is_whole(file)
    whole = note.read_text()
    for damage in ("", whole[: len(whole) // 2], "\0" * len(whole), "[]"):
        note.write_text(damage)
        assert not is_whole(file)
    note.unlink()
    assert is_whole(file)

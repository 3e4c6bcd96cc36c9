"""The journal keeps every whole line, whatever happens to the last one, and notes what each store has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.tracking.journal import Delivered, Journal, find, journals, own_path


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


@pytest.mark.parametrize("named", ["its own id", "the id that a store gave it"])
def test_parents_come_before_children_when_the_clock_was_set_back(tmp_path: Path, named: str) -> None:
    made = [Journal.create(tmp_path / name, name) for name in ("c-arm", "b-run", "d-run", "a-study")]
    arm, run, other, study = made
    run.note("sqlite:///x", Delivered("id-of-a-store", 0))
    above = run.id if named == "its own id" else "id-of-a-store"
    for journal, parent, when in ((study, None, 4), (run, study.id, 3), (arm, above, 1), (other, study.id, 2)):
        journal.path.write_text(json.dumps({"event": "start", "time": when, "parent": parent}) + "\n")
    assert [j.id for j in journals(tmp_path)] == [study.id, other.id, run.id, arm.id]


def test_parts_of_one_run_come_before_their_inner_parts(tmp_path: Path) -> None:
    """In the same millisecond too, or with a clock set back: the last part gives the run its kind."""
    trial, arm, experiment = (Journal.create(tmp_path / name, name) for name in ("a", "b", "c"))
    for journal, kind, when in ((trial, "trial", 3), (arm, "arm", 1), (experiment, "experiment", 1)):
        above = {} if kind == "trial" else {"parent": trial.id, "joins": True}
        journal.path.write_text(json.dumps({"event": "start", "time": when, "tags": {"kind": kind}, **above}) + "\n")
    assert [j.id for j in journals(tmp_path)] == [trial.id, experiment.id, arm.id]


def test_journals_that_name_each_other_as_parents_have_an_order(tmp_path: Path) -> None:
    one, two = Journal.create(tmp_path, "one"), Journal.create(tmp_path, "two")
    for journal, parent in ((one, two), (two, one)):
        journal.path.write_text(json.dumps({"event": "start", "time": 1, "parent": parent.id}) + "\n")
    assert {j.id for j in journals(tmp_path)} == {one.id, two.id}


@pytest.fixture
def theirs(tmp_path: Path) -> Journal:
    """A journal in a run's folder next to a file that is not the run's."""
    folder = tmp_path / "runs" / "theirs"
    for file in (tmp_path / "secret.txt", folder / "config.yaml", folder / "arms" / "x" / "trained" / "a.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").mkdir()
    (folder / "linked" / "a.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    return Journal.create(folder, "experiment-x")


@pytest.mark.parametrize(
    "name", ["{root}/secret.txt", "../../secret.txt", "..", "../theirs/../../secret.txt", "link", "linked", "up",
             "up/secret.txt", "/etc"]
)  # fmt: skip
def test_files_of_elsewhere_are_not_the_runs(theirs: Journal, tmp_path: Path, name: str) -> None:
    assert own_path(theirs, name.format(root=tmp_path)) is None


@pytest.mark.parametrize("name", ["config.yaml", "./arms/x/trained", "arms/../config.yaml", "gone.txt"])
def test_files_of_the_run(theirs: Journal, name: str) -> None:
    assert own_path(theirs, name) is not None


def test_an_arm_names_files_of_its_experiment(theirs: Journal) -> None:
    arm = Journal.create(theirs.folder / "arms" / "x", "arm-x")
    assert own_path(arm, "../../config.yaml") == theirs.folder.resolve() / "config.yaml"
    assert own_path(arm, "../../../../secret.txt") is None


def test_a_folder_with_the_name_of_an_arm_is_none_of_a_run(tmp_path: Path) -> None:
    """`sync ~/arms/theirs` must not make all of the home the run's."""
    (tmp_path / "secret.txt").write_text("x")
    arm = Journal.create(tmp_path / "arms" / "theirs", "arm-x")
    (arm.folder / "own.txt").write_text("x")
    assert own_path(arm, "../../secret.txt") is None
    assert own_path(arm, "own.txt") is not None


def test_a_note_of_an_earlier_version_loses_the_password(tmp_path: Path) -> None:
    journal, uri = Journal.create(tmp_path, "x"), "http://bob:S3CRET@host"
    journal.append("start")
    note = journal.path.with_name(journal.path.stem + ".delivered.json")
    note.write_text(json.dumps({uri: {"run_id": "r", "offset": 3, "models": {}}}))
    assert journal.delivered(uri) == journal.delivered("http://bob:other@host") == Delivered("r", 3)
    assert journal.missing_in(uri)
    journal.note(uri, Delivered("r", 4))
    assert journal.delivered(uri).offset == 4
    assert "S3CRET" not in note.read_text()

from __future__ import annotations

from pathlib import Path

from experiments.common.files import write_json
from experiments.common.owner import CONFIG, MEASURED, SOURCES, anew, other_than, owner_of


def test_files_of_another_run_are_told_apart(tmp_path: Path) -> None:
    write_json(tmp_path / SOURCES, {"0 sums": "a", CONFIG: "b"})
    own = owner_of(tmp_path, arm="full-0.001")
    assert own == {"0 sums": "a", CONFIG: "b", "arm": "full-0.001"}
    assert other_than(own, own) == []
    assert other_than({**own, CONFIG: "c", "arm": "x"}, own) == [CONFIG, "arm"]


def test_what_is_not_known_does_not_count(tmp_path: Path) -> None:
    assert owner_of(tmp_path) == {}
    write_json(tmp_path / "a" / MEASURED, {"digest": "1"})
    assert owner_of(tmp_path / "a") == {"measured": "1"}
    assert other_than({"0 sums": "a"}, {}) == other_than({}, {"0 sums": "a"}) == []


def test_a_measurement_has_no_fresh(tmp_path: Path) -> None:
    assert anew(tmp_path) == "start anew with --fresh"
    write_json(tmp_path / MEASURED, {"digest": "1"})
    assert anew(tmp_path) == f"delete the folder {tmp_path}, and the same command measures everything anew"

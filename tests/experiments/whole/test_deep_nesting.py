"""JSON and YAML that are nested too deep are refused by each reader as any other damage: never a RecursionError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ctrl
from experiments.common.errors import CompareError, ConfigError, DamagedError
from experiments.common.files import parse_json, read_json, read_note
from experiments.comparison.inputs import read_runs
from experiments.data.grader import chosen
from experiments.desk.overview import read_config
from experiments.evaluation.lm_eval_samples import read_samples
from experiments.records import read_records
from experiments.tracking.journal import Journal

DEEP = "[" * 50_000
SAMPLES = "samples_x_2025-01-01T00-00-00.0.jsonl"
# file -> (reader of its folder, error, words of the message)
REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "note.json": (lambda f: read_json(f / "note.json"), DamagedError, "note.json is damaged"),
    "items.jsonl": (lambda f: read_records(f / "items.jsonl"), DamagedError, "items.jsonl, line 1 is not an item"),
    "config.yaml": (lambda f: read_config(f / "config.yaml"), ConfigError, "config.yaml is not YAML"),
    "all.json": (lambda f: read_runs([str(f / "all.json")]), CompareError, "all.json is no export of a study"),
    SAMPLES: (read_samples, ValueError, "does not hold lm_eval's samples"),
    "config.json": (ctrl.load_published, ctrl.CheckpointError, "cannot read .*config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_deep_nesting_is_refused_by_name(name: str, tmp_path: Path) -> None:
    read, error, words = REFUSED[name]
    (tmp_path / name).write_text(DEEP + "\n")
    with pytest.raises(error, match=words):
        read(tmp_path)


def test_deep_nesting_in_what_can_be_left_out_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text(DEEP)
    assert read_note(tmp_path / "note.json") == {}
    journal = Journal.create(tmp_path, "x")
    journal.append("start")
    journal.close()
    journal.path.write_text(DEEP + "\n" + journal.path.read_text())
    assert [event["event"] for event, _ in journal.read()] == ["start"]
    with pytest.raises(ValueError, match="the options must be a list"):
        chosen(DEEP, "A", None)


def test_parse_json_raises_nothing_else() -> None:
    for text in (DEEP, "{", b"\xff", "1" * 10_000):
        with pytest.raises(ValueError, match=r"nested|Expecting|codec|digits"):
            parse_json(text)

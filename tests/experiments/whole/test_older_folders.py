"""Folders in the form of earlier versions, without digests and notes of today, are read, continued and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.common.files import read_json, write_json
from experiments.config import load_config
from tests.helpers.damage import Roots
from tests.helpers.damaged import SUBJECTS

pytestmark = pytest.mark.slow


def drop(root: Path, pattern: str, *names: str) -> None:
    """Take some values out of notes."""
    files = sorted(root.glob(f"runs/*/{pattern}"))
    for file in files:
        write_json(file, {name: value for name, value in read_json(file).items() if name not in names})


def older(root: Path) -> None:
    """Leave what versions before November 2026 wrote. Real folders of two of them were opened with this code too."""
    drop(root, "arms/*/result.json", "made_from", "digest")
    drop(root, "base/timing.json", "weights", "files", "measured")
    drop(root, "arms/*/data.json", "run", "digest")
    for file in root.glob("runs/*/arms/*/measured.json"):
        file.unlink()
    for file in root.glob("runs/*/arms/*/checkpoints/*/complete.json"):
        write_json(file, {name: (file.parent / name).stat().st_size for name in read_json(file)})
    for file in root.glob("runs/*/config.yaml"):
        file.write_text(yaml.safe_dump(load_config(file).to_flat()))
    for file in root.glob("runs/**/journal-*.jsonl"):
        file.write_text(file.read_text().replace('"pid_ticks"', '"pid_unknown"').replace('"machine_id"', '"other_id"'))


@pytest.mark.parametrize("name", ["finished", "interrupted", "read"])
def test_a_folder_of_an_earlier_version_gives_the_same_facts(name: str, roots: Roots) -> None:
    subject = SUBJECTS[name]
    expected = roots.expected(subject)
    outcome = roots._go_on(subject, older)
    assert outcome.code == 0, outcome.text
    assert outcome.facts == expected
    assert "Traceback" not in outcome.text


def test_a_folder_of_a_later_version_is_refused_by_name(roots: Roots) -> None:
    """A record, a result and a config with fields that this version does not know."""
    subject = SUBJECTS["read"]

    def later(root: Path) -> None:
        (file,) = root.glob("runs/*/base/items.jsonl")
        file.write_text(file.read_text().replace('{"suite"', '{"unknown": 1, "suite"'))

    outcome = roots._go_on(subject, later)
    assert outcome.code == 2
    assert "items.jsonl" in outcome.text
    assert "Traceback" not in outcome.text

    def newer_result(root: Path) -> None:
        drop(root, "arms/*/result.json", "digest")
        for file in root.glob("runs/*/arms/*/result.json"):
            values: dict[str, Any] = read_json(file)
            write_json(file, values | {"unknown": 1})

    outcome = roots._go_on(SUBJECTS["finished"], newer_result)
    assert outcome.code == 2
    assert "result.json is no result of an arm" in outcome.text
    assert "Traceback" not in outcome.text

"""The folder of a measurement: where it is, and which one is refused before anything is written to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import read_json
from experiments.measure.config import measure_config
from experiments.measure.folder import NOTE, note_settings


def test_the_same_settings_open_it_again_and_others_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        note_settings(folder, measure_config("base"), "0123abcd")
    assert read_json(folder / NOTE)["digest"] == "0123abcd"
    with pytest.raises(ConfigError, match=r"out holds a measurement of another base, or with other settings: choose"):
        note_settings(folder, measure_config("base", seed=1), "4567abcd")
    assert read_json(folder / NOTE)["seed"] == 0


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and holds no measurement \(no measure\.json\): choose"):
        note_settings(tmp_path, measure_config("base"), "0123abcd")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]

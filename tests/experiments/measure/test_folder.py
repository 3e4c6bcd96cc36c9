"""The folder of a measurement: where it is, and which one is refused before anything is written to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.hashing import BLOCKS_ONCE, WHOLE
from experiments.measure.config import measure_config
from experiments.measure.files import content
from experiments.measure.folder import NOTE, note_settings, say_replaced


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file too large to be read as a whole."""
    folder = tmp_path_factory.mktemp("base")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(WHOLE + 1)
    return folder


def test_the_same_settings_open_it_again_and_others_are_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        note_settings(folder, measure_config("base"), "0123abcd", base)
    assert read_json(folder / NOTE)["digest"] == "0123abcd"
    with pytest.raises(ConfigError, match=r"out holds a measurement of another base, or with other settings: choose"):
        note_settings(folder, measure_config("base", seed=1), "4567abcd", base)
    assert read_json(folder / NOTE)["seed"] == 0


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(base: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and holds no measurement \(no measure\.json\): choose"):
        note_settings(tmp_path, measure_config("base"), "0123abcd", base)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_new_weights_of_the_same_size_and_time_are_refused(base: Path, tmp_path: Path) -> None:
    folder, weights = tmp_path / "out", base / "model.safetensors"
    note_settings(folder, measure_config("base"), "0123abcd", base)
    values = read_json(folder / NOTE)
    for noted in (content(base, BLOCKS_ONCE), None):  # of earlier versions
        write_json(folder / NOTE, {name: value for name, value in {**values, "content": noted}.items() if value})
        note_settings(folder, measure_config("base"), "0123abcd", base)
        assert read_json(folder / NOTE) == values
    time = weights.stat().st_mtime_ns
    with weights.open("r+b") as file:
        file.seek(300_000)
        file.write(b"x" * 20_000)
    os.utime(weights, ns=(time, time))
    with pytest.raises(ConfigError, match="out holds a measurement of another base"):
        note_settings(folder, measure_config("base"), "0123abcd", base)


def test_a_report_of_other_models_that_is_replaced_is_said(base: Path, tmp_path: Path) -> None:
    """One command for each model has one folder, since base and settings are the same."""
    folder, said = tmp_path / "out", list[str]()
    for arms in (["one"], ["one", "two"], ["two"]):
        say_replaced(folder, arms, said.append)
        note_settings(folder, measure_config("base"), "0123abcd", base, arms=arms)
    (line,) = said
    assert line.startswith(f"report and figures.json of one in {folder} are replaced; the records stay")

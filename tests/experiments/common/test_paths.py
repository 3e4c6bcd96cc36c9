"""The folder of results, and paths as they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.paths import default_root, short_path


def test_results_go_to_the_nearest_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert default_root() == below / "mlruns"
    (tmp_path / "mlruns").mkdir()
    assert default_root() == tmp_path / "mlruns"


def test_paths_are_relative_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert short_path(here / "runs" / "x") == "runs/x"
    assert short_path("runs/../x") == "x"
    assert short_path(tmp_path / "x") == str(tmp_path / "x")
    (here / "link").symlink_to(tmp_path)
    assert short_path(here / "link") == "link"

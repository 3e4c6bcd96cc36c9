"""The folder of results, and paths as they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.console import folder, folder_or_page
from experiments.common.paths import absolute, default_root, root_folder, short_path
from experiments.common.result_folders import find
from experiments.measure.callback import ForgettingCallback
from experiments.measure.folder import Folder
from experiments.records import ArmResult
from experiments.runs.outcome import Outcome
from experiments.studies.trial import run_record


def test_results_go_to_the_nearest_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert default_root() == below / "mlruns"
    (tmp_path / "mlruns").mkdir()
    assert default_root() == tmp_path / "mlruns"


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it in --out=~/x, and Python does: a folder of the name ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert root_folder("~/results") == folder("~/results") == tmp_path / "results"
    assert folder_or_page("~/page.html") == tmp_path / "page.html"
    assert Folder("measure", "m", out="~/out").path("1") == tmp_path / "out"
    assert Folder("measure", "m", root="~/results").path("1") == tmp_path / "results" / "runs" / "measure-m-1"
    assert ForgettingCallback(folder="~/seen").folder == tmp_path / "seen"


def test_paths_are_relative_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert short_path(here / "runs" / "x") == "runs/x"
    assert short_path("runs/../x") == "x"
    assert short_path(tmp_path / "x") == str(tmp_path / "x")
    (here / "link").symlink_to(tmp_path)
    assert short_path(here / "link") == "link"


def test_a_run_that_is_a_link_belongs_to_the_root_of_its_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, disk = tmp_path / "mlruns", tmp_path / "disk" / "case"
    (root / "runs").mkdir(parents=True)
    disk.mkdir(parents=True)
    (disk / "config.yaml").touch()
    (root / "runs" / "case").symlink_to(disk)
    monkeypatch.chdir(root)
    for name in ("runs/case", "../mlruns/runs/case", str(root / "runs" / "case")):
        assert absolute(name).parents[1] == root
        assert find(name, root).parents[1] == root
    assert find("cas", root).parents[1] == root
    result = ArmResult("full", "full", 1e-3, "finished")
    done = Outcome(root / "runs" / "case", [result], root / "report.html", "", "", {})
    assert run_record(0, done, root)["folder"] == "runs/case"

"""Commands that are printed start the command line from where the user is."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common import commands
from experiments.common.commands import command, own_modules, own_python, program


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `bin` of an environment below the working directory that is not on PATH, with the console script in it."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("control-llm", "python"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(commands.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_the_script_of_an_environment_that_is_not_active(venv: Path) -> None:
    assert program() == ".venv/bin/control-llm"
    line = command("run", venv.parent.parent / "a b.yaml", "--set", "name=x y")
    assert line == ".venv/bin/control-llm run 'a b.yaml' --set 'name=x y'"
    assert shlex.split(line)[1:] == ["run", "a b.yaml", "--set", "name=x y"]


def test_the_script_of_an_active_environment(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(venv))
    assert program() == "control-llm"


def test_another_script_on_path_is_not_meant(venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "control-llm").write_text("#!/bin/sh\n")
    (other / "control-llm").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert program() == ".venv/bin/control-llm"


def test_the_script_that_was_started(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed with --user it is not in Python's own folder of scripts."""
    monkeypatch.setattr(commands.sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(venv / "control-llm"), "runs"])
    assert program() == ".venv/bin/control-llm"


def test_without_a_script_python_is_named(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (venv / "control-llm").unlink()
    assert program() == ".venv/bin/python -m experiments.cli"
    monkeypatch.setenv("PATH", str(venv))
    assert program() == "python -m experiments.cli"


def test_the_command_can_be_run() -> None:
    done = subprocess.run(["sh", "-c", command("--help")], capture_output=True, text=True, check=True)
    assert "COMMAND" in done.stdout


def test_another_python_finds_our_modules_and_runs_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "asked.py").write_text("import statistics\nprint(statistics.mean([1, 3]))")
    (tmp_path / "statistics.py").write_text("mean = 'of the working directory'.format")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, **own_modules()}
    words = own_python("asked")
    assert subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout == "2\n"
    places = environment["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path / "mine") in places
    assert not any("site-packages" in place or place.endswith(".zip") for place in places)

"""The command `preview`, on a terminal and in a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from experiments.cli import main as cli
from tests.helpers.byte_level import byte_base
from tests.helpers.small_run import small_values


@pytest.mark.parametrize("terminal", [False, True])
def test_an_example_with_its_loss_mask(
    terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.csv").write_text("instruction,input,output\nAdd,1 1,2\n")
    values = small_values(byte_base(tmp_path / "base"), data={"new": {"source": "file", "path": "own.csv"}})
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["preview", "own.yaml", "--set", "data.length=64"]) == 0
    said = capsys.readouterr().out
    assert "shape: instruction and output (columns instruction, output, input)" in said
    assert ("\u00ab2\u00a6<|im_end|>\u00bb" in said) is not terminal
    assert ("\x1b[" in said) is terminal
    assert cli.main(["preview", "own.yaml", "--set", "data.new.path=none.csv"]) == 2
    assert "data file none.csv does not exist" in capsys.readouterr().err

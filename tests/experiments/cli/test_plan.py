"""The command `plan` prints what an arm needs, and says by its exit code whether all arms fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.cli.main import main
from tests.helpers.small_run import small_values, tiny_base


def test_a_plan_is_printed_and_its_code_says_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = small_values(tiny_base(tmp_path / "base"))
    values |= {"arms": values["arms"][:1], "precision": "bf16"}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    before = set(tmp_path.rglob("*"))
    assert main(["plan", str(file), "--gpu", "l4-24gb", "--length", "32"]) == 0
    text = capsys.readouterr().out
    assert "4 steps of 4 rows of 32 tokens, in micro-batches of 4" in text
    assert "full: 1.6 M parameters, 1.6 M train (100.0%), 0.0 M added" in text
    assert "tokens/s" in text
    assert main(["plan", str(file), "--memory", "1mb", "--length", "32"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before

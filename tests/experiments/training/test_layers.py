"""Figures of each layer are noted without changing what is trained."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ctrl.diagnostics import LayerStep, Log
from tests.helpers.engine import (
    arm_config,
    train,
)


def test_noting_layers_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = train(arm_config("control"), tmp_path / "a", steps=2)
    monkeypatch.setattr("experiments.training.trainer.LayerFigures.noting", lambda self, tokens: nullcontext())
    two = train(arm_config("control"), tmp_path / "b", steps=2)
    assert "layers/alpha_01" in one.logs[2]
    assert "layers/alpha_01" not in two.logs[2]
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_a_step_reads_the_figures_of_all_layers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading waits for the GPU."""
    read: list[int] = []
    rows = Log.rows.fget  # type: ignore[attr-defined]

    def noted(log: Log) -> list[LayerStep]:
        read.append(len(log.raw))
        return list(rows(log))

    monkeypatch.setattr(Log, "rows", property(noted))
    train(arm_config("control"), tmp_path, steps=2)
    assert read == [2, 2]  # two expanded layers, one pass

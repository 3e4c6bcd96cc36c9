"""Figures of each layer are noted without changing what is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ctrl.diagnostics import LayerStep, Log
from experiments.training.layers import LayerFigures
from tests.helpers.engine import arm_config, train


def test_noting_layers_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = train(arm_config("control"), tmp_path / "a", steps=2)
    monkeypatch.setattr("experiments.training.trainer.LayerFigures.noting", lambda self, tokens: nullcontext())
    two = train(arm_config("control"), tmp_path / "b", steps=2)
    assert "layers/alpha_01" in one.logs[2]
    assert "layers/alpha_01" not in two.logs[2]
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_each_token_counts_the_same_in_whichever_process_it_was() -> None:
    """1 over 10 tokens and 2 over 30 are 1.75 over 40, not the mean of both; what one process lacks is the other's."""
    nan, sums = float("nan"), list[torch.Tensor]()
    processes = {10: (1.0, nan), 30: (2.0, 0.5)}

    def take(tokens: int, summed: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        figures = LayerFigures(None)
        divergence, alpha = processes[tokens]
        figures.log.raw.append((0, 3, torch.tensor([divergence, alpha, nan, nan, nan, nan, nan])))
        figures.tokens[0] = tokens
        return figures.take(summed)

    take(10, lambda own: sums.append(own) or own)  # type: ignore[func-returns-value]
    assert take(30, lambda own: own + sums[0]) == {"layers/divergence_03": 1.75, "layers/alpha_03": 0.5}


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

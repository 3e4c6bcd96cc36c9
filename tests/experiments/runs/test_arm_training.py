"""How an arm is trained follows from its run. Its training itself: experiments/training/test_processes.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.config import parse_config
from experiments.runs.arm_training import ArmTraining

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
TASKS = {"suites": {"lm_eval": {"kept": ["arc_easy"]}}}


@pytest.mark.parametrize(
    ("evaluation", "training", "save_every"),
    [
        ({}, {}, None),  # at each evaluation
        (TASKS, {}, 6),
        (TASKS, {"steps": 61}, 7),
        (TASKS, {"steps": 3}, 1),
        (TASKS, {"save_every": 20}, 20),
        ({**TASKS, "every": 30}, {}, None),
        ({"every": None}, {}, 6),
    ],
)
def test_a_run_that_is_measured_at_its_end_alone_has_checkpoints(
    evaluation: dict[str, Any], training: dict[str, Any], save_every: int | None
) -> None:
    """Else a kill would cost the whole arm."""
    config = parse_config({"name": "x", "evaluation": evaluation, "training": training, "arms": ARMS})
    prepared: Any = SimpleNamespace(
        config=config, folder=Path("x"), precision=None, data=SimpleNamespace(old_batches=None)
    )
    assert ArmTraining(prepared, config.arms[0], 1e-3).training.save_every == save_every

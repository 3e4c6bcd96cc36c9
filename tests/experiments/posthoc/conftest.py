"""A run of six arms, for all tests of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config

ARMS: list[dict[str, Any]] = [
    {"name": "full", "method": "full", "learning_rates": [1e-2]},
    {"name": "control", "method": "control", "learning_rates": [1e-2], "control": {"layers": 2}},
    {"name": "stack", "method": "stack", "learning_rates": [1e-2], "control": {"layers": 1}},
    {"name": "lora", "method": "lora", "learning_rates": [1e-2], "options": {"rank": 2}},
    {
        "name": "dlerp",
        "method": "control",
        "learning_rates": [1e-2],
        "control": {"layers": 2, "interpolation": "dlerp", "divergence": "none"},
    },
    {"name": "ewc", "method": "ewc", "learning_rates": [1e-2], "options": {"batches": 1}},
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 0}
    config = small_config(base, arms=ARMS, training=training)
    outcome = run_experiment(config, tmp_path_factory.mktemp("root") / "mlruns", say=lambda text: None)
    assert not outcome.failed
    return outcome.folder

"""A config with one arm: of given values, or with a given `evaluation` section."""

from __future__ import annotations

from typing import Any

from experiments.config import ExperimentConfig, parse_config
from experiments.methods.config import ArmConfig

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]


def config_of(evaluation: Any) -> ExperimentConfig:
    return parse_config({"name": "x", "evaluation": evaluation, "arms": ARMS})


def arm(**values: Any) -> ArmConfig:
    return parse_config({"name": "x", "arms": [{"name": "x", "learning_rates": [1e-3], **values}]}).arms[0]

"""A study in seconds: the tiny model's small run with one arm, two evaluations of few items."""

from __future__ import annotations

from typing import Any

from experiments.studies.config import StudyConfig
from experiments.studies.load import parse_study
from tests.helpers.small_run import small_values

ARMS = {
    "full": {"arms.0.method": "full"},
    "control": {"arms.0.method": "control", "arms.0.control": {"layers": 2}},
}
RATE = {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [1e-3, 1e-2]}


def study_values(base: str, /, **changes: Any) -> dict[str, Any]:
    """A grid of two arms at two learning rates, unless changes say otherwise."""
    arm = {"name": "arm", "method": "full", "learning_rates": [1e-3]}
    run = small_values(base, arms=[arm])
    run["evaluation"]["kept_tasks"] = ["capitals"]  # others read dictionaries, which takes seconds
    values: dict[str, Any] = {
        "name": "tiny",
        "base": run,
        "search": {"arm": {"kind": "arms", "arms": ARMS}, "rate": RATE},
        "objectives": [{"figure": "kl", "direction": "minimize"}],
        "sampler": "grid",
    }
    return values | changes


def tiny_study(base: str, /, **changes: Any) -> StudyConfig:
    return parse_study(study_values(base, **changes))

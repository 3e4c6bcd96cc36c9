"""Answers of simulated models, and whether an interval has their true figure."""

from __future__ import annotations

import numpy as np

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array


def flipped(rng: np.random.Generator, right: Array, lost: float, won: float) -> Array:
    return np.asarray(np.where(right, rng.random(len(right)) >= lost, rng.random(len(right)) < won))


def answers_of(suite: str, task: str, right: Array) -> list[Record]:
    return [Record(suite, task, "generate", f"{i:03d}", correct=int(c)) for i, c in enumerate(right)]


def covered(found: Estimate, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high

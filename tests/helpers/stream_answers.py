"""Three tasks learned one after the other: a config, and answers after each stage."""

from __future__ import annotations

from typing import Any

from experiments.config import ExperimentConfig, parse_config
from experiments.records import Record
from tests.helpers.small_run import small_values

TASKS = ("chain_sum", "gcd", "spell_backward")
NEW = [{"name": name} for name in TASKS]
# right answers of ten: row t after stage t, row 0 before; the columns are TASKS
RIGHT = ((1, 2, 0), (8, 3, 0), (5, 9, 1), (6, 4, 7))
ENDS = (2, 4, 6)


def config(**changes: Any) -> ExperimentConfig:
    values = {"data": {"new": NEW, "order": "sequential"}, "training": {"steps": 6}} | changes
    return parse_config(small_values("base", **values))


def answers(right: tuple[int, ...]) -> list[Record]:
    """Ten questions a task, and one of a kept task that has the name of a new one."""
    new = [
        Record("new", task, "generate", f"{task} {i}", correct=int(i < count))
        for task, count in zip(TASKS, right, strict=True)
        for i in range(10)
    ]
    return [*new, Record("kept", "gcd", "chat", "other", correct=0)]


BASE = answers(RIGHT[0])
CHECKPOINTS = {step: answers(right) for step, right in zip(ENDS, RIGHT[1:], strict=True)} | {5: answers((0, 0, 0))}

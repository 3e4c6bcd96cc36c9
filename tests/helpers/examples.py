"""The examples of docs/extending.md, and the contracts of the built-in variants that they are run through."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import INTERPOLATIONS
from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS
from experiments.evaluation.similarity import METRICS
from experiments.evaluation.suites import SUITES
from experiments.methods import AVERAGES, LOSS_TERMS, TUNINGS
from experiments.posthoc.operations import OPERATIONS
from experiments.scorecard.figures import FIGURES
from experiments.training.schedules import SCHEDULES

TABLES: tuple[dict[str, Any], ...] = (
    INTERPOLATIONS, DIVERGENCES, SCHEDULES, KEPT_TASKS, OPERATIONS, METRICS, TUNINGS, LOSS_TERMS, AVERAGES, SUITES,
    FIGURES,
)  # fmt: skip
Load = Callable[[str], ModuleType]


@contextlib.contextmanager
def loading() -> Iterator[Load]:
    """Give a function that imports an example. What it registers is taken back after the block."""
    before = [dict(table) for table in TABLES]

    def imported(name: str) -> ModuleType:
        sys.modules.pop(f"docs.examples.{name}", None)  # so that it registers again
        return importlib.import_module(f"docs.examples.{name}")

    yield imported
    for table, values in zip(TABLES, before, strict=True):
        table.clear()
        table.update(values)


def cases(contract: type) -> list[tuple[str, dict[str, Any]]]:
    """(method, arguments) for every test of a contract class, once for each combination of its parameters."""
    found = []
    for name, method in vars(contract).items():
        if not name.startswith("test_"):
            continue
        marks = [mark.args for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
        for values in itertools.product(*(mark[1] for mark in marks)):
            found.append((name, {mark[0]: value for mark, value in zip(marks, values, strict=True)}))
    return found


def labels(case: Any) -> str:
    return str(case) if isinstance(case, str) else ",".join(map(str, case.values()))

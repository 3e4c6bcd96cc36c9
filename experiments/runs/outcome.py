"""The outcome of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.records import ArmResult


@dataclass
class Outcome:
    """What a finished experiment leaves: its folder, one result per arm and learning rate, the report.

    ui_command: opens the MLflow UI. run_url: of the run in that UI. base: headline figures of the base model.
    """

    folder: Path
    results: list[ArmResult]
    report: Path
    ui_command: str
    run_url: str
    base: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[ArmResult]:
        return [r for r in self.results if r.status == "failed"]

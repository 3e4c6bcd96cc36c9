"""What the report of a run shows besides its main table, from the item records of all its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.config import ExperimentConfig
from experiments.records import ArmResult, Record, read_records
from experiments.reporting.details import (
    Table,
    alignment_pictures,
    cost_table,
    data_table,
    further_table,
    posthoc_table,
    trajectory_table,
)
from experiments.reporting.stream import stream_pictures, stream_table
from experiments.reporting.text import label
from experiments.scorecard import SignificantPairs, significant_pairs


def read_steps(files: Mapping[int, Path]) -> dict[int, list[Record]]:
    return {step: read_records(path) for step, path in files.items()}


@dataclass(frozen=True)
class RunRecords:
    """records: of each evaluation by step, by label of the arm; arms without any are not in it."""

    config: ExperimentConfig
    base: Sequence[Record]
    results: Sequence[ArmResult]
    records: Mapping[str, Mapping[int, Sequence[Record]]]

    @property
    def last(self) -> dict[str, Sequence[Record]]:
        return {name: steps[max(steps)] for name, steps in self.records.items()}

    def significant_pairs(self) -> SignificantPairs:
        """Find the finished arms that differ at their last evaluation."""
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        finished = {label(result) for result in self.results if result.status == "finished"}
        return significant_pairs(
            {n: [(self.base, after)] for n, after in self.last.items() if n in finished}, draws, seed
        )

    def tables(self, drawn: Mapping[str, Sequence[Mapping[str, Any]]], afterwards: Sequence[ArmResult]) -> list[Table]:
        """drawn: by arm, the data that it was trained on. afterwards: results of operations on trained weights."""
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        tables = [
            stream_table(self.config, self.results),
            trajectory_table(self.base, self.records, draws, seed),
            further_table(self.results),
            posthoc_table(afterwards),
            data_table(drawn),
            cost_table(self.results),
        ]
        return [table for table in tables if table]

    def pictures(self) -> list[tuple[str, Figure]]:
        """With their titles."""
        return stream_pictures(self.config, self.base, self.records) + alignment_pictures(self.last)

"""The further tables and pictures of a run's report, from the item records of all its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.config import ExperimentConfig
from experiments.data.overlap import Overlap
from experiments.records import ArmResult, Record, read_records
from experiments.reporting.answers import Questions, turned_table
from experiments.reporting.details import (
    alignment_pictures,
    cost_table,
    data_table,
    further_table,
    overlap_table,
    packing_table,
    posthoc_table,
    trajectory_table,
)
from experiments.reporting.differences import ArmDifferences, arm_differences
from experiments.reporting.stream import stream_pictures, stream_table
from experiments.reporting.table import Table
from experiments.reporting.text import label
from experiments.scorecard import SignificantPairs, significant_pairs


def read_steps(files: Mapping[int, Path]) -> dict[int, list[Record]]:
    return {step: read_records(path) for step, path in files.items()}


@dataclass(frozen=True)
class RunRecords:
    """The item records of a run. records: by label of the arm and by step; arms without any are left out.

    questions: their texts (`question_texts`). Arms that did not finish are in no table or picture of this file: the
    main table has their reason in place of figures, and with them the others would be compared at less gain than they
    reach.
    """

    config: ExperimentConfig
    base: Sequence[Record]
    results: Sequence[ArmResult]
    records: Mapping[str, Mapping[int, Sequence[Record]]]
    questions: Questions = field(default_factory=dict)

    @property
    def whole(self) -> list[ArmResult]:
        """The arms that finished."""
        return [result for result in self.results if result.status == "finished"]

    @property
    def steps(self) -> dict[str, Mapping[int, Sequence[Record]]]:
        """The records of these arms, by step."""
        names = {label(result) for result in self.whole}
        return {name: steps for name, steps in self.records.items() if name in names}

    @property
    def last(self) -> dict[str, Sequence[Record]]:
        return {name: steps[max(steps)] for name, steps in self.steps.items()}

    def significant_pairs(self) -> SignificantPairs:
        """Find the finished arms that differ at their last evaluation."""
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        finished = {label(result) for result in self.results if result.status == "finished"}
        return significant_pairs(
            {n: [(self.base, after)] for n, after in self.last.items() if n in finished}, draws, seed
        )

    def differences(self) -> ArmDifferences | None:
        """Compare the finished arms with the first of them."""
        return arm_differences(self.base, self.last, self.results, self.config.evaluation.bootstrap, self.config.seed)

    def turned(self) -> Table | None:
        """Show the answers that each arm lost and won."""
        return turned_table(self.base, self.last, self.questions)

    def tables(
        self,
        drawn: Mapping[str, Sequence[Mapping[str, Any]]],
        afterwards: Sequence[ArmResult],
        overlaps: Sequence[Overlap] = (),
        packed: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> list[Table]:
        """Make the further tables. drawn: the data of each arm. afterwards: operations on trained weights.

        overlaps: of the measured questions with the training data. packed: counts of packing of each arm, if any.
        """
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        tables = [
            stream_table(self.config, self.whole),
            trajectory_table(self.base, self.steps, draws, seed),
            further_table(self.whole),
            self.turned(),
            posthoc_table(afterwards, self.results),
            data_table(drawn),
            packing_table(packed or {}),
            overlap_table(overlaps),
            cost_table(self.whole),
        ]
        return [table for table in tables if table]

    def pictures(self) -> list[tuple[str, Figure]]:
        """Draw the further pictures, with their titles."""
        return stream_pictures(self.config, self.base, self.steps) + alignment_pictures(self.last)

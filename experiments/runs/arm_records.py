"""The item records of one arm on disk, one file per evaluation, and their scores."""

from __future__ import annotations

from pathlib import Path

from experiments.records import Estimate, Record, read_records, write_records
from experiments.runs.prepared import Prepared


class ArmRecords:
    """Files `items-<step>.jsonl` in a folder. Each is scored once; this object keeps the figures."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self._prepared, self._folder = prepared, folder
        self._figures: dict[int, dict[str, Estimate]] = {}

    def write(self, step: int, records: list[Record]) -> dict[str, Estimate]:
        """Write the records of an evaluation and return their figures."""
        write_records(self._folder / f"items-{step}.jsonl", records)
        self._figures[step] = self._prepared.score(records)
        return self._figures[step]

    def files(self) -> dict[int, Path]:
        """Return the files by step, in order."""
        files = {int(p.stem.removeprefix("items-")): p for p in self._folder.glob("items-*.jsonl")}
        return dict(sorted(files.items()))

    def read(self) -> dict[int, list[Record]]:
        """Return the records of all evaluations by step."""
        return {step: read_records(file) for step, file in self.files().items()}

    def figures(self) -> dict[int, dict[str, Estimate]]:
        """Return the figures of all evaluations by step, also of those that an earlier process wrote."""
        for step, file in self.files().items():
            if step not in self._figures:
                self._figures[step] = self._prepared.score(read_records(file))
        return {step: self._figures[step] for step in self.files()}

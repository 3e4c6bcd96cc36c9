"""The item records of one arm on disk, one file per evaluation, and their scores."""

from __future__ import annotations

from pathlib import Path

from experiments.common.files import is_damaged, read_note, write_json
from experiments.common.hashing import file_digest
from experiments.records import Estimate, Record, read_records, write_records
from experiments.runs.prepared import Prepared

MEASURED = "measured.json"  # name of a file of records -> its digest, for an arm that is not finished


class ArmRecords:
    """Files `items-<step>.jsonl` in a folder. Each is scored once; this object keeps the figures."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self._prepared, self._folder = prepared, folder
        self._figures: dict[int, dict[str, Estimate]] = {}

    def write(self, step: int, records: list[Record]) -> dict[str, Estimate]:
        """Write the records of an evaluation and return their figures."""
        write_noted(self._folder / f"items-{step}.jsonl", records)
        self._figures[step] = self._prepared.score(records)
        return self._figures[step]

    def whole(self, step: int) -> bool:
        return is_whole(self._folder / f"items-{step}.jsonl")

    def files(self) -> dict[int, Path]:
        """Return the files by step, in order: of the steps at which the run measures, whatever else is there."""
        files = {step: self._folder / f"items-{step}.jsonl" for step in self._prepared.config.evaluation_steps}
        return {step: path for step, path in files.items() if path.is_file()}

    def read(self) -> dict[int, list[Record]]:
        """Return the records of all evaluations by step."""
        return {step: read_records(file) for step, file in self.files().items()}

    def figures(self) -> dict[int, dict[str, Estimate]]:
        """Return the figures of all evaluations by step, also of those that an earlier process wrote."""
        for step, file in self.files().items():
            if step not in self._figures:
                self._figures[step] = self._prepared.score(read_records(file))
        return {step: self._figures[step] for step in self.files()}


def write_noted(file: Path, records: list[Record]) -> None:
    """Write records, and note their digest next to them: there is no result yet that has it."""
    write_records(file, records)
    write_json(file.with_name(MEASURED), read_note(file.with_name(MEASURED)) | {file.name: file_digest(file)})


def is_whole(file: Path) -> bool:
    """Whether records are there as they were written; earlier versions noted no digests."""
    note = file.with_name(MEASURED)
    digest = read_note(note).get(file.name)
    return file.is_file() and (not is_damaged(note) if digest is None else file_digest(file) == digest)

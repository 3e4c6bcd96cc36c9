"""Record a tracked run on disk: an append-only file of JSON lines, written before any store gets them.

One journal is one run, however often the run was continued. It holds all that is needed to create the run in any
store. Next to it is `<journal>.delivered.json`: for each store the run's id there, and how many bytes have arrived.
This note is written after the delivery, so a crash between the two delivers some lines twice, never too few.

A journal may be a part of its parent's run (`joins`): a study's trial with one seed is one run in MLflow, but its
trial, its experiment and its arm have a journal each.

Events: start (id, name, experiment, parent, joins, run, process), tags, params, metrics (step, values), inputs
(datasets), artifact (path relative to the journal's folder, to), model (path, name, params, step, metrics), end
(status). Each has `time`, in milliseconds since 1970.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.files import parse_json, write_json
from experiments.tracking.uri import without_password

PATTERN = "journal-*.jsonl"
PARTS = ("arms", "posthoc")  # folders of a run with a folder for each arm or operation
KINDS = ("study", "trial", "experiment", "arm", "posthoc")  # of runs, the outer ones first
Event = dict[str, Any]


@dataclass(frozen=True)
class Delivered:
    """How far a journal got in one store.

    run_id: empty before the store made the run. models: ids of its logged models there, by name.
    """

    run_id: str = ""
    offset: int = 0
    models: dict[str, str] = field(default_factory=dict)


class Journal:
    """Append and read the events of one run. Several threads of one process may use it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, name: str) -> Journal:
        """Return a new journal in a folder. Its file name ends with a random id, `Journal.id`."""
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^\w.-]+", "-", name)[:60]
        return cls(folder / f"journal-{slug}-{uuid.uuid4().hex}.jsonl")

    @property
    def id(self) -> str:
        """The run's id outside of stores; every store has it as the tag `journal_id`."""
        return self.path.stem[-32:]

    @property
    def joins(self) -> str:
        """The journal's id of the run above, if this is a part of that run; empty for a run of its own."""
        first = next((event for event, _ in self.read()), Event())
        return str(first["parent"]) if first.get("joins") else ""

    @property
    def run(self) -> str:
        """The id by which every store finds the run, also one that gets it later."""
        return self.joins or self.id

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def append(self, event: str, **values: Any) -> None:
        """Append one line and flush it: it survives the death of the process. Raises OSError."""
        line = json.dumps({"event": event, "time": int(time.time() * 1000), **values}, default=str)
        with self._lock:
            if self._file is None:
                self._file = self._open()
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def to_disk(self) -> None:
        """Flush to disk, so that a power cut loses nothing either. Too slow for every step."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        self.to_disk()
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def read(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Yield the events from a byte offset on, each with the offset after its line.

        A last line without its end is not read: it is being written, or a power cut tore it. A line that is not JSON
        (a torn one with lines after it) is skipped.
        """
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    event = parse_json(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event, offset

    def last(self, name: str) -> Event | None:
        """Return the last event with a name, for example the `start` of the latest attempt."""
        found = [event for event, _ in self.read() if event["event"] == name]
        return found[-1] if found else None

    def ended(self) -> bool:
        """Whether the latest attempt has ended, rather than still running or dead."""
        names = [event["event"] for event, _ in self.read() if event["event"] in ("start", "end")]
        return bool(names) and names[-1] == "end"

    def delivered(self, store: str) -> Delivered:
        return Delivered(**self._notes().get(without_password(store), {}))

    def note(self, store: str, delivered: Delivered) -> None:
        """Note what a store has. An id that it gave before is kept, by which those know the run who have not sent it:
        a store may be lost and made anew."""
        name, notes = without_password(store), self._notes()
        before = notes.get(name, {}).get("run_id") or delivered.run_id
        if before != delivered.run_id:
            notes[f"earlier {before}"] = asdict(Delivered(before))
        write_json(self._notes_path, notes | {name: asdict(delivered)})

    def missing_in(self, store: str) -> bool:
        """Whether a store lacks lines of this journal. False if only other stores have seen it: `sync` sends it."""
        notes = self._notes()
        return (without_password(store) in notes or not notes) and self.size > self.delivered(store).offset

    def known_as(self, run_id: str) -> bool:
        """Whether this is the journal of the run with an id."""
        return run_id in self.ids

    @property
    def ids(self) -> set[str]:
        """All ids of the run: its own, and those that stores gave it."""
        return {self.id, *(note["run_id"] for note in self._notes().values())}

    @property
    def _notes_path(self) -> Path:
        return self.path.with_name(self.path.stem + ".delivered.json")

    def _notes(self) -> dict[str, dict[str, Any]]:
        try:
            notes = parse_json(self._notes_path.read_text(encoding="utf-8"))
            return {without_password(store): note for store, note in notes.items()}  # earlier versions kept passwords
        except (FileNotFoundError, ValueError, AttributeError):
            return {}  # everything is delivered again, which changes nothing

    def _open(self) -> Any:
        file = self.path.open("ab")
        if self.size:
            with self.path.open("rb") as read:
                read.seek(-1, os.SEEK_END)
                if read.read(1) != b"\n":  # torn by a power cut: start a new line
                    file.write(b"\n")
        return file


def own_path(journal: Journal, name: str) -> Path | None:
    """Return a file or folder that a line of a journal names; None if it is not the run's.

    A journal of somebody else could name any file of this machine. What is the run's is in the journal's folder, or (an
    arm, an operation) in the folder of the experiment two above. That one has a config: else a foreign folder that was
    unpacked as `arms/x` would make all that is around it the run's. Links are not followed.
    """
    folder = journal.folder.resolve()
    part = folder.parent.name in PARTS and (folder.parent.parent / "config.yaml").is_file()
    above = folder.parents[1] if part else folder
    path = Path(os.path.normpath(folder / name))
    inside = path.is_relative_to(above) and path == path.resolve()
    return path if inside and not any(file.is_symlink() for file in path.rglob("*")) else None


def journals(folder: Path) -> list[Journal]:
    """Return all journals at or below a folder in the order in which their runs began: parents before children."""
    return in_order(Journal(path) for path in sorted(Path(folder).rglob(PATTERN)))


def in_order(found: Iterable[Journal]) -> list[Journal]:
    """Sort journals: parents before children, whatever the clock said; then by the time at which their runs began.

    Parts of one run may have begun in the same millisecond: the outer one is first, as the last one gives the kind.
    """
    starts = {journal: next((event for event, _ in journal.read()), Event()) for journal in found}
    known = {run_id: journal for journal, start in starts.items() if not start.get("joins") for run_id in journal.ids}

    def depth(journal: Journal) -> int:
        chain = [journal]
        while (above := known.get(starts[chain[-1]].get("parent") or "")) and above not in chain:
            chain.append(above)
        return len(chain)

    def part(start: Event) -> int:
        kind = start.get("tags", {}).get("kind") if start.get("joins") else None
        return KINDS.index(kind) if kind in KINDS else len(KINDS)

    return sorted(starts, key=lambda one: (depth(one), part(starts[one]), starts[one].get("time", 0)))


def find(folder: Path, run_id: str) -> Journal | None:
    """Return the journal of a run in a folder, or None."""
    return next((j for j in map(Journal, sorted(Path(folder).glob(PATTERN))) if j.known_as(run_id)), None)

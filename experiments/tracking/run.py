"""Log a run from the code that trains: every call appends to the run's journal and returns at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.commands import command
from experiments.common.files import write_text
from experiments.tracking.client import MAX_VALUE, key
from experiments.tracking.delivery import Delivery
from experiments.tracking.journal import Journal, own_path
from experiments.tracking.uri import without_password

CLOSE_SECONDS = 60.0  # how long a store that answers is waited for


@dataclass(frozen=True)
class ParentRun:
    """The run of a study's trial, to which an experiment of one arm belongs. id: of its journal.

    name: of the experiment's run. joins: whether that is the trial's run itself, since the study has one seed.
    """

    id: str
    name: str
    joins: bool


class Run:
    """Write the journal of one run. No method raises or waits because of MLflow, but `close` waits for a while.

    reason: set by `fail`. measured: whether it has numbers.
    """

    def __init__(self, journal: Journal, delivery: Delivery, uri: str) -> None:
        self.journal, self.reason, self.measured = journal, "", False
        self._delivery, self._uri = delivery, uri
        self._began = time.monotonic()
        self._logged: dict[str, int] | None = None

    @property
    def id(self) -> str:
        """The id that the store gave the run, or before that the journal's id. Both work as `parent` and `run_id`."""
        return self.journal.delivered(self._uri).run_id or self.journal.id

    @property
    def faults(self) -> int:
        """Failed deliveries since the tracker was made."""
        return self._delivery.faults

    def age(self) -> int:
        return int(time.monotonic() - self._began)

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers at a step; other values are left out. They reach the store within about a second."""
        values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        if values:
            self.measured = True
            self.journal.append("metrics", step=step, values=values)
        self.warn_once()

    def log_new(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log numbers of a step, without those that an earlier attempt logged at this step or a later one.

        A run that goes on from a checkpoint repeats the steps after it, with the same values.
        """
        if self._logged is None:
            self._logged = self._logged_before()
        self.log_metrics({name: v for name, v in metrics.items() if step > self._logged.get(name, -1)}, step)

    def changed_versions(self) -> str:
        """Return the packages whose version is another one than at the run's first start; an empty text if none."""
        starts = [event["tags"] for event, _ in self.journal.read() if event["event"] == "start"]
        first, last = starts[0], starts[-1]
        names = [name for name in first if name.startswith("version/") and first[name] != last.get(name)]
        pairs = [f"{n.removeprefix('version/')} {first[n]}, and goes on with {last.get(n, 'none')}" for n in names]
        return "; ".join(pairs)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested values under dotted names. A continued run keeps the values that it has."""
        self._write("params", params=flatten(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._write("tags", tags={name: str(value) for name, value in tags.items()})

    def log_note(self, markdown: str) -> None:
        """Set the description that the UI shows on top of the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_inputs(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Log datasets that the run reads: `name`, `digest`, and if known `kind` (training, replay) and `share`."""
        self._write("inputs", datasets=[dict(d) for d in datasets])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file or a whole folder as an artifact. It must stay on disk until it has arrived."""
        self._write("artifact", path=self._relative(path), to=folder)

    def log_text(self, text: str, name: str) -> None:
        """Log text as the artifact `name`, a path. The text is kept in the folder `<journal>/`."""
        write_text(self._own(name), text)
        self._send_own(name)

    def log_model(
        self,
        folder: Path,
        name: str,
        params: Mapping[str, Any] | None = None,
        figures: Collection[str] = (),
        step: int = 0,
    ) -> None:
        """Log the trained tensors in a folder as the logged model `name` of this run; `sync.download` fetches them.

        A run has one model per name: a further call replaces its files. params: shown with the model. figures: names
        of metrics that the run has logged at `step`, which the model shows too. The folder must stay on disk until it
        has arrived.
        """
        metrics = self._noted(figures, step) if figures else []
        place = self._relative(folder)
        self._write("model", path=place, name=name, params=flatten(params or {}), step=step, metrics=metrics)

    def fail(self, reason: str) -> None:
        """Make the run end as FAILED, even if its block ends without an exception.

        The traceback of an exception that is being handled becomes the artifact `traceback.txt`.
        """
        self.reason = without_password(reason) or "no reason given"
        self.set_tags({"error": self.reason})
        if sys.exc_info()[0]:
            self.log_text(without_password(traceback.format_exc()), "traceback.txt")

    def close(self, status: str) -> None:
        if self._delivery.faults:
            self.set_tags({"tracking_faults": str(self._delivery.faults)})
        self.journal.append("end", status=status)
        self.journal.close()
        if not self._delivery.drain(CLOSE_SECONDS) and self._on_top():  # a child run is named with its parent
            self._delivery.announced = False
            root = self._delivery.store.root
            folder = root if self.journal.folder == root / "journals" else self.journal.folder
            self.warn_once(f"; later: {command('sync', folder)}")
        if lost := self._delivery.refused():
            text = (
                f"MLflow refused {len(lost)} lines of a journal, the last: {lost[-1]}; the run's folder keeps them all"
            )
            warnings.warn(text, stacklevel=3)
        self._delivery.ended(self.journal)

    def _logged_before(self) -> dict[str, int]:
        """Return the last step of each metric that earlier attempts of this run have logged."""
        found: dict[str, int] = {}
        waiting: dict[str, int] = {}  # of the attempt that is read
        for event, _ in self.journal.read():
            if event["event"] == "start":
                found |= waiting
            elif event["event"] == "metrics":
                waiting |= {name: max(event["step"], waiting.get(name, -1)) for name in event["values"]}
        return found

    def _on_top(self) -> bool:
        start, _ = next(iter(self.journal.read()))
        return not start["parent"] or start["tags"]["kind"] == "posthoc"

    def warn_once(self, advice: str = "") -> None:
        """Warn with one line per outage, from the thread that trains."""
        if self._delivery.message and not self._delivery.announced:
            self._delivery.announced = True
            text = f"MLflow: {self._delivery.message}; training goes on, the journal keeps everything{advice}"
            warnings.warn(text, stacklevel=3)

    def _write(self, event: str, **values: Any) -> None:
        self.journal.append(event, **values)
        self.journal.to_disk()
        self.warn_once()

    def _relative(self, path: Path) -> str:
        """Return the path as journals have it. A file of elsewhere is copied: only files of the run are sent."""
        path = Path(path).resolve()
        name = os.path.relpath(path, self.journal.folder)
        if path.exists() and own_path(self.journal, name) is None:
            copy = self._own(path.name)
            shutil.copytree(path, copy, dirs_exist_ok=True) if path.is_dir() else shutil.copyfile(path, copy)
            name = os.path.relpath(copy, self.journal.folder)
        return name

    def _noted(self, names: Collection[str], step: int) -> list[dict[str, Any]]:
        """Return the latest values of metrics at a step with the times of their lines, so that no point is doubled."""
        found: dict[str, dict[str, Any]] = {}
        for event, _ in self.journal.read():
            if event["event"] == "metrics" and event["step"] == step:
                for name in set(names) & set(event["values"]):
                    found[name] = {"name": name, "value": event["values"][name], "time": event["time"]}
        return list(found.values())

    def _own(self, name: str) -> Path:
        path = self.journal.path.with_suffix("") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _send_own(self, name: str) -> None:
        self.log_file(self._own(name), str(Path(name).parent) if Path(name).parent != Path() else None)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings and lists of mappings to dotted names; values become text, cut to what MLflow stores."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        place = f"{prefix}{name}"
        if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{place}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
            flat[key(place)] = text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
    return flat

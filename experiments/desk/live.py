"""Follow a run or a study from its files, whoever trains it: the journals of its arms, their results, its config.

Nothing here needs torch, and nothing asks the process that trains. A journal has a line for each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.progress import duration
from experiments.common.result_folders import MEASUREMENT, find, folders, trial_runs
from experiments.desk.overview import Overview, read_config, read_run, read_study, state_after
from experiments.records import read_records
from experiments.reporting.plots.caption import Asked, asked_in, asked_of
from experiments.runs.result_file import RESULT, result_values
from experiments.tracking.journal import PATTERN, Event, Journal

Series = dict[int, float]  # step -> value
ENDED = ("finished", "failed", "pruned")


@dataclass
class LiveArm:
    """An arm as far as it is. status: waiting, running, stopped, unknown, or how it ended.

    series: by the name of a figure what was logged, in the order of the steps. seconds: between the first and the last
    step of the latest attempt, with the evaluations between them. steps: those that this time covers. total: steps
    until its end. step: the last one that was logged; 0 before the first.
    """

    folder: Path
    method: str = ""
    learning_rate: float = 0.0
    status: str = "waiting"
    series: dict[str, Series] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    total: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self._journal, self._offset = Journal(self.folder), 0
        self._first, self._edge = (0, 0.0), Event()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def pace(self) -> float | None:
        """Seconds per step, None before there are two."""
        return self.seconds / self.steps if self.steps else None

    def last(self, figure: str) -> float | None:
        """Return the value of a figure at the last step that has one."""
        values = self.series.get(figure)
        return values[max(values)] if values else None

    def layers(self, figure: str) -> Series:
        """Return the last values of a figure by layer: `divergence`, `alpha` or `closed`."""
        start = f"layers/{figure}_"
        found = {name.removeprefix(start): self.last(name) for name in self.series if name.startswith(start)}
        return {int(layer): value for layer, value in sorted(found.items()) if value is not None}

    def look(self) -> None:
        """Read what was written since the last look."""
        latest = max(self.folder.glob(PATTERN), key=lambda path: path.stat().st_mtime, default=None)
        if latest is not None and latest != self._journal.path:
            self._journal, self._offset = Journal(latest), 0
        for event, offset in self._journal.read(self._offset):
            self._read(event)
            self._offset = offset
        result = result_values(self.folder / RESULT)
        self.status = str(result["status"]) if result else state_after(self._edge) if self._edge else "waiting"

    def _read(self, event: Event) -> None:
        if event["event"] in ("start", "end"):
            self._edge = event
        if event["event"] == "start":
            self._first, self.seconds, self.steps = (0, 0.0), 0.0, 0
        elif event["event"] == "params":
            self.method = str(event["params"].get("method", self.method))
            self.learning_rate = float(event["params"].get("learning_rate", self.learning_rate))
        elif event["event"] == "metrics":
            for name, value in event["values"].items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self.series.setdefault(name, {})[event["step"]] = value
            if "loss" in event["values"]:
                self._timed(event["step"], event["time"] / 1000)

    def _timed(self, step: int, when: float) -> None:
        if not self._first[0]:
            self._first = (step, when)
        self.step = step  # an attempt that goes on from a checkpoint logs earlier ones once more
        self.steps, self.seconds = step - self._first[0], max(0.0, when - self._first[1])


@dataclass(frozen=True)
class Live:
    """A run or a study at one moment. left: seconds until the end, None if nothing says.
    asked: how many questions an arm answers."""

    overview: Overview
    arms: Sequence[LiveArm]
    left: float | None
    asked: Asked = field(default_factory=Asked)

    @property
    def running(self) -> bool:
        return self.overview.status == "running"

    @property
    def current(self) -> LiveArm | None:
        """The arm that trains, else the last one that has begun."""
        begun = [arm for arm in self.arms if arm.status != "waiting"]
        return next((arm for arm in begun if arm.status == "running"), begun[-1] if begun else None)


class Follower:
    """Read a run or a study again and again; each look reads only what is new. source: as in `control-llm show`.

    Raises ConfigError if there is no such run or study, and for a measurement, which has no steps.
    """

    def __init__(self, source: str, root: Path) -> None:
        self.folder = find(source, root)
        if (self.folder / MEASUREMENT).is_file():
            raise ConfigError(f"{self.folder.name} is a measurement, which trains nothing: see control-llm show")
        self.is_study = (self.folder / "study.yaml").is_file()
        self.asked = Asked()
        self._seeds, self._counted = set[int](), dict[str, int]()
        self._arms: dict[Path, list[LiveArm]] = {}  # by run: a config is read once

    def look(self) -> Live:
        runs = trial_runs(self.folder, folders(self.folder.parents[1])[1]) if self.is_study else [self.folder]
        for run in runs:
            if run not in self._arms:
                self._arms[run] = self._arms_of(run)
        arms = [arm for run in runs for arm in self._arms[run]]
        for arm in arms:
            if arm.status not in ENDED:
                arm.look()
        self._count(runs)
        overview = read_study(self.folder, runs) if self.is_study else read_run(self.folder)
        return Live(overview, arms, self._left(overview, arms), self.asked)

    def _arms_of(self, run: Path) -> list[LiveArm]:
        config = read_config(run / "config.yaml")
        self._seeds.add(int(config.get("seed", 0)))
        steps, self.asked = int(config["training"]["steps"]), asked_in(config, seeds=len(self._seeds))
        paths = [run / "arms" / f"{arm['name']}-{rate:g}" for arm in config["arms"] for rate in arm["learning_rates"]]
        return [LiveArm(path, total=steps) for path in paths]

    def _count(self, runs: Sequence[Path]) -> None:
        """Count the questions once the base of a run has answered them: the config says how many there may be."""
        base = next((file for run in runs if (file := run / "base" / "items.jsonl").is_file()), None)
        if base and not self._counted:
            self._counted = dict(asked_of(read_records(base)).counts)
        own = {part: count for part, count in self._counted.items() if part in ("new", "kept")}
        self.asked = replace(self.asked, counts={**self.asked.counts, **own})

    def _left(self, overview: Overview, arms: Sequence[LiveArm]) -> float | None:
        """Estimate the seconds that are left: arms that have not begun take as long per step as the others."""
        paces = [arm.pace for arm in arms if arm.pace is not None]
        if not paces or overview.status != "running":
            return None
        mean = fmean(paces)
        open_arms = [arm for arm in arms if arm.status not in ENDED]
        seconds = sum((arm.total - arm.step) * (arm.pace or mean) for arm in open_arms)
        missing = max(0, (overview.total or 0) - overview.done - len(open_arms)) if self.is_study else 0
        return seconds + missing * fmean(arm.total for arm in arms) * mean


def words_of(live: Live) -> str:
    """Say in one line how far it is: `facts: running, 1 of 4 arms done, arm 2 of 4, full-0.001 at step 9 of 60`."""
    one, current = live.overview, live.current
    total = "" if one.total is None else f" of {one.total}"
    parts = [
        f"{one.folder.name}: {one.status}",
        f"{one.done}{total} {'trials' if one.kind == 'study' else 'arms'} done",
    ]
    if live.running and current is not None:
        place = "" if one.kind == "study" else f"arm {live.arms.index(current) + 1} of {len(live.arms)}, "
        parts.append(f"{place}{current.name} at step {current.step} of {current.total}")
    if live.left is not None:
        parts.append(f"about {duration(live.left)} left")
    return ", ".join(parts)


def values_of(arm: LiveArm) -> dict[str, Any]:
    """Return what the table of the view has of an arm, as plain values by the name of a column."""
    gain = arm.last("gain") if "gain" in arm.series else arm.last("new_nll_drop")
    return {
        "arm": arm.name,
        "status": arm.status,
        "step": arm.step,
        "loss": arm.last("lm_loss") if "lm_loss" in arm.series else arm.last("loss"),
        "gain": gain,
        "retention": arm.last("retention"),
        "KL": arm.last("kl"),
        "s/step": arm.pace,
    }

"""A run that trains, as its files show it, without a process that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from experiments.common.files import write_text
from experiments.tracking.journal import Journal
from experiments.tracking.machine import process_tags
from tests.helpers.run_folders import CONFIG, make_run


def make_live_run(root: Path, name: str = "demo-0123abcd", arms: list[str] | None = None) -> Path:
    """A run of this process. arms: their names, at one rate each; default: three of CONFIG."""
    folder = make_run(root, name)
    if arms:
        values = {"name": name, **CONFIG, "arms": [{"name": arm, "learning_rates": [1e-3]} for arm in arms]}
        write_text(folder / "config.yaml", yaml.safe_dump(values))
    begin(Journal.create(folder, "experiment-demo"), experiment=name.partition("-")[0])
    return folder


def begin(journal: Journal, experiment: str = "demo", **tags: str) -> None:
    journal.append("start", name="demo", experiment=experiment, parent=None, run=None, tags=process_tags() | tags)


def begin_arm(folder: Path, name: str, journal: Journal | None = None) -> Journal:
    journal = journal or Journal.create(folder / "arms" / name, f"arm-{name}")
    begin(journal)
    journal.append("params", params={"method": name.split("-")[0], "learning_rate": name.split("-", 1)[1]})
    return journal


def log(journal: Journal, steps: dict[int, dict[str, Any]], seconds: float) -> None:
    """Write the values of steps as if each had taken so many seconds."""
    for step, values in steps.items():
        event = {"event": "metrics", "time": int(1e12 + 1000 * seconds * step), "step": step, "values": values}
        journal.path.open("a").write(json.dumps(event) + "\n")

"""Find the folders of runs, studies and measurements below a root, by name or by the beginning of a name."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from experiments.common.errors import ConfigError
from experiments.common.paths import absolute, short_path

TRIAL = r"-\d{3,}(-seed\d+)?-[0-9a-f]{8}"  # what follows a study's name in the names of its runs
MEASUREMENT = "measure.json"  # of the folder of a measurement
MOST = 100_000  # characters of the first line of a journal


def folders(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of the studies and of the runs below a root."""
    studies, runs = (sorted(root.glob(pattern)) for pattern in ("studies/*/study.yaml", "runs/*/config.yaml"))
    return [file.parent for file in studies], [file.parent for file in runs]


def measurements(root: Path) -> list[Path]:
    """Return the folders of measurements below a root."""
    return [file.parent for file in sorted(root.glob(f"runs/*/{MEASUREMENT}"))]


def trial_runs(study: Path, runs: Iterable[Path]) -> list[Path]:
    """Return those of the runs that are a study's.

    A run of its own may have such a name too, as `facts-2026` next to a study `facts`: its journal says that.
    """
    found = (run for run in runs if re.fullmatch(re.escape(study.name) + TRIAL, run.name))
    return [run for run in found if _experiment(run) in (None, study.name)]


def _experiment(run: Path) -> str | None:
    """Return the experiment in MLflow that a run began in: that of its study; None if it has no journal here."""
    file = next(iter(sorted(run.glob("journal-*.jsonl"))), None)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if file is not None:
            with file.open(encoding="utf-8") as lines:
                return json.loads(lines.readline(MOST)).get("experiment")
    return None


def find(name: str, root: Path) -> Path:
    """Return the folder of a run, study or measurement by its path or the beginning of its name. Raises ConfigError."""
    path = absolute(name)
    if any((path / file).is_file() for file in ("config.yaml", "study.yaml", MEASUREMENT)):
        return path
    studies, runs = folders(root)
    trials = [run for study in studies for run in trial_runs(study, runs)]
    own = [*studies, *(run for run in runs if run not in trials), *measurements(root)]
    for candidates in (own, trials):
        exact = [folder for folder in candidates if folder.name == name]
        found = exact or [folder for folder in candidates if folder.name.startswith(name)]
        if len(found) == 1:
            return absolute(found[0])
        if found:
            raise ConfigError(f"{len(found)} names begin with {name!r}: {', '.join(f.name for f in found)}")
    from experiments.common.section import nearest  # loads pydantic; `show` of a name that is there needs none

    known = nearest(name, [folder.name for folder in own])
    raise ConfigError(f"no run or study {name!r} below {short_path(root)}: {known}")

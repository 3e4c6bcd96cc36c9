"""Find the folders of runs, studies and measurements below a root, by name or by the beginning of a name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from experiments.common.errors import ConfigError
from experiments.common.paths import absolute, short_path

TRIAL = r"-\d{3,}(-seed\d+)?-[0-9a-f]{8}"  # what follows a study's name in the names of its runs
MEASUREMENT = "measure.json"  # of the folder of a measurement


def folders(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of the studies and of the runs below a root."""
    studies, runs = (sorted(root.glob(pattern)) for pattern in ("studies/*/study.yaml", "runs/*/config.yaml"))
    return [file.parent for file in studies], [file.parent for file in runs]


def measurements(root: Path) -> list[Path]:
    """Return the folders of measurements below a root."""
    return [file.parent for file in sorted(root.glob(f"runs/*/{MEASUREMENT}"))]


def trial_runs(study: Path, runs: Iterable[Path]) -> list[Path]:
    """Return those of the runs that are a study's."""
    return [run for run in runs if re.fullmatch(re.escape(study.name) + TRIAL, run.name)]


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

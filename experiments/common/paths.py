"""The folder of results, the shipped configs, and paths as they are shown."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"  # the YAML files of the package; those of studies are in `studies`


def default_root() -> Path:
    """Return the nearest `mlruns` folder at or above the working directory, or else the one to make in it."""
    here = Path.cwd()
    return next((p / "mlruns" for p in (here, *here.parents) if (p / "mlruns").is_dir()), here / "mlruns")


def short_path(path: str | Path) -> str:
    """Return the path relative to the working directory if it is below it, else absolute. Links are not followed."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

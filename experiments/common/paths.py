"""The folder of results, the shipped configs, and paths as they are shown."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"  # the YAML files of the package; those of studies are in `studies`

FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of runs and studies
LONGEST_NAME = 100  # bytes; file systems allow 255, and a rate and an operation are added


def default_root() -> Path:
    """Return the nearest `mlruns` folder at or above the working directory, or else the one to make in it."""
    here = Path.cwd()
    return next((p / "mlruns" for p in (here, *here.parents) if (p / "mlruns").is_dir()), here / "mlruns")


def root_folder(root: str | Path | None) -> Path:
    """Return the folder of results from the top: the one that is given, ~ for the home folder, or the default one."""
    return (Path(root).expanduser() if root else default_root()).resolve()


def absolute(path: str | Path) -> Path:
    """Return the path from the top, without `..`. Links are not followed: a run folder that was moved to another disk
    and linked still belongs to the root in which its link is.
    """
    return Path(os.path.abspath(path))


def short_path(path: str | Path) -> str:
    """Return the path relative to the working directory if it is below it, else absolute. Links are not followed."""
    path = absolute(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def name_on_disk(name: str) -> str:
    """Return what some disks see of a file's name: not its case, nor whether an accent is a letter of its own."""
    return unicodedata.normalize("NFC", name).casefold()


def check_file_name(name: str) -> str:
    """Return a name of which folders are made. Raises ValueError if it would be a path, or no name to read.

    Spaces and letters of all scripts are allowed.
    """
    if not name or name != name.strip() or name.startswith(".") or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(
            f"a folder gets this name: 1 to {LONGEST_NAME} bytes, with no space at its ends and no dot at its start"
        )
    if wrong := next((letter for letter in name if letter in "/\\" or not letter.isprintable()), ""):
        raise ValueError(f"a folder gets this name, so it cannot contain {wrong!r}")
    return name

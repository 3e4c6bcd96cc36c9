"""Tell a run's own files from those of another run, which fit as well: of the same base model, shapes and names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.files import read_note

SOURCES = "sources.json"  # of a run: the digests of its data, and CONFIG
ARM = "arm.json"  # of an arm: the digest of its settings, without learning rates
MEASURED = "measure.json"  # of a measurement
LAUNCH = "launch.json"  # of a checkpoint: the kind of launch that wrote it, and for which arm of which run
CONFIG = "config"  # the digest of its settings; earlier versions did not note it


def owner_of(run: Path, **more: str) -> dict[str, Any]:
    """Return what settings and data a run folder has, to be written into its files. more: the arm, for example."""
    measured = read_note(run / MEASURED)
    return {**read_note(run / SOURCES), **({"measured": measured["digest"]} if "digest" in measured else {}), **more}


def anew(run: Path) -> str:
    """Say how to do all of a run or measurement again: `measure` and `soften` have no --fresh."""
    if (run / MEASURED).is_file():
        return f"delete the folder {run}, and the same command measures everything anew"
    return "start anew with --fresh"


def settings_noted(arm: Path) -> dict[str, str]:
    """Return the settings of the arm in a folder, as one more fact for `owner_of`; nothing for earlier versions."""
    note = read_note(arm / ARM)
    return {"settings": str(note["settings"])} if "settings" in note else {}


def other_than(noted: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the names of `owner_of` that differ between a file and the run in which it is. Unknown ones do not count.

    So files of earlier versions, and of folders that are no run, count as own ones.
    """
    return [name for name in noted if own.get(name, noted[name]) != noted[name]]

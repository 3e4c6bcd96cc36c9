"""A trained arm of the run of six arms in tests of posthoc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.posthoc.operations import (
    TrainedArm,
)


def arm(run: Path, name: str, **changes: Any) -> TrainedArm:
    return TrainedArm(run, name, 1e-2, **changes)

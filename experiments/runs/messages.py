"""Messages of the main process to the others of a launch: each announces what all processes do next.

Order: MeasureBase for each suite that no cache has, BaseReady, then TrainArm for each arm that is trained, then Done.
`experiments.runs.experiment` has both sides of all but TrainArm, which `ArmTraining.train` has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.outcome import Outcome


@dataclass(frozen=True)
class MeasureBase:
    """Measure the base model with this suite, each process some of the items.

    reworded: in its second wording. state: of the prepared suite. folder: for files that are too large for it.
    """

    suite: str
    reworded: bool
    state: dict[str, Any]
    folder: Path | None


@dataclass(frozen=True)
class BaseReady:
    """Data and base records are on disk: prepare the run from them."""


@dataclass(frozen=True)
class TrainArm:
    """Train the arm with this index, in the order of the config. micro_batch: what main process found to fit."""

    index: int
    micro_batch: int | None = None


@dataclass(frozen=True)
class Done:
    """The run has come to its end: return its outcome."""

    outcome: Outcome

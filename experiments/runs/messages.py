"""Messages of the main process to the others of a launch: each announces what all processes do next.

Order: BaseReady, then TrainArm for each arm that is trained, then Done. `experiments.runs.experiment` has both sides of
BaseReady and Done, `ArmTraining.train` those of TrainArm.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.runs.outcome import Outcome


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

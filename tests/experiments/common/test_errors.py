"""Errors that a user can act on: one base, and the exit code of each."""

from __future__ import annotations

from experiments.common import errors
from experiments.common.errors import BenchError

CODES = {
    "ConfigError": 2,
    "CompareError": 2,
    "DamagedError": 2,
    "MachineError": 1,
    "ModelError": 1,
    "NotFinite": 1,
    "RefusedRow": 2,
    "RunError": 1,
    "StudyError": 1,
    "TrackingError": 1,
}


def test_each_error_has_the_base_and_its_exit_code() -> None:
    own = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and name != "BenchError"}
    assert issubclass(own.pop("Stopped"), KeyboardInterrupt)  # a wish of the user: no fault, and no exit code
    assert {name: cls.exit_code for name, cls in own.items()} == CODES
    assert all(issubclass(cls, BenchError) for cls in own.values())

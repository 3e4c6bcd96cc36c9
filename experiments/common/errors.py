"""Errors that a user can act on. Each has the exit code with which the command line ends.

The message names the argument, its value and the next step. Errors that a room raises and catches itself (an arm that
failed, a trial that was pruned) are defined in that room. The library's own are `ctrl.ConfigError` and
`ctrl.CheckpointError`.
"""

from __future__ import annotations


class BenchError(Exception):
    """Base of the bench's errors: catch it to catch all of them. exit_code: 1, something failed; 2, wrong input."""

    exit_code = 1


class ConfigError(BenchError, ValueError):
    """A YAML file that cannot be run; the message lists every fault with its place in the file.

    It is a ValueError too, because pydantic collects only those from validators.
    """

    exit_code = 2


class RefusedRow(ConfigError):
    """A conversation that the chat template cannot write. It is passed over with skip_bad_rows."""


class CompareError(BenchError):
    """A run on the command line that cannot be compared."""

    exit_code = 2


class DamagedError(BenchError, ValueError):
    """A file of a run that was cut, changed or replaced since it was written. The message names it and what to do."""

    exit_code = 2


class ModelError(BenchError):
    """A base model or tokenizer that cannot be used."""


class NotFinite(BenchError, RuntimeError):
    """A model whose logits are not finite, so nothing can be measured."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite, so nothing can be measured: lower the learning rate")


class RunError(BenchError):
    """An experiment that cannot start or go on. Nothing recorded is lost."""


class MachineError(RunError):
    """A fault of the machine (see `machine_faults`): it says nothing about the arm or trial, and may be gone soon."""


class StudyError(BenchError):
    """A study that cannot start, or that stopped. No trial is lost."""


class TrackingError(BenchError):
    """A local MLflow store that cannot be opened, or nothing to send to it; raised before anything is trained."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, an interrupted kernel, or a click on Stop: no fault, so a notebook shows one line and no traceback."""

    def _render_traceback_(self) -> list[str]:
        """Called by IPython."""
        return [str(self)]

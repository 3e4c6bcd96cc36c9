"""The two errors of this library, its warnings, and the message for an unknown name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

NO_MODEL = "a model of transformers is needed, but got {}: load one with AutoModelForCausalLM.from_pretrained"


class ConfigError(ValueError):
    """A configuration cannot be used. The message lists every fault, one per line."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


class ControlWarning(UserWarning):
    """Say that something is not as the user may think. Each model gets it anew."""


# Python shows equal words of one place once in a process: of the second model of a notebook nothing was said. Filters
# of the user come first.
warnings.filterwarnings("always", category=ControlWarning, append=True)


def warn(message: str, stacklevel: int) -> None:
    """Warn, at the place that `warnings.warn` would name if the caller called it."""
    warnings.warn(message, ControlWarning, stacklevel=stacklevel + 1)


def shown(value: object) -> str:
    """Return a value as it is written in a message. Python writes no integer of thousands of digits: ValueError."""
    try:
        return repr(value)
    except ValueError:
        return f"{type(value).__name__} with too many digits"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `did you mean 'lerp'? known: lerp, slerp, ...`, without the question if no known name is similar."""
    known = list(known)
    near = difflib.get_close_matches(name if isinstance(name, str) else shown(name), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known) or 'none'}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return `unknown <kind> 'lerpp': did you mean 'lerp'? known: lerp, slerp, ...`"""
    return f"unknown {kind} {shown(name)}: {nearest(name, known)}"

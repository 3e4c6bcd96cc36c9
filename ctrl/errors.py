"""The two errors of this library, and the message for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration cannot be used. The message lists every fault, one per line."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


def unknown_name(kind: str, name: object, known: Sequence[str]) -> str:
    """Write the message `unknown <kind> 'lerpp': did you mean 'lerp'? known: lerp, slerp, ...`."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}"

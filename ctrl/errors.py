"""Errors, and the text for a name that is not in a table."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every fault found, one per line."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read whole."""


def unknown_name(kind: str, name: object, known: Sequence[str]) -> str:
    """`unknown <kind> 'lerpp': did you mean 'lerp'? known: lerp, slerp, ...`"""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}"

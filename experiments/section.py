"""What every section of a YAML file is made of: frozen, typed, no undeclared key, faults with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A YAML file that cannot be run; the message lists every fault with its place in the file."""


class Section(BaseModel):
    """Base of all sections: frozen, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: x, y`, for the end of an error."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"

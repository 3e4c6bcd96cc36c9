"""Base class of the sections of a YAML file: frozen, typed, without undeclared keys; faults name the nearest key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Place = tuple[int | str, ...]  # keys and indices from the top of the file


def later_field(default: Any, **options: Any) -> Any:
    """Declare a field of a later version: what is written, and so its digest, has it only if it is not the default."""
    return Field(default, exclude_if=lambda value: value == default, **options)


class Section(BaseModel):
    """Base of all sections: frozen, and every key is declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `did you mean 'steps'? known: steps, ...`, without the question if no known name is similar."""
    from ctrl.errors import nearest  # ctrl loads torch, which is needed for a message only

    return nearest(name, known)


def fault_lines(error: ValidationError, keys_at: Callable[[Place], Iterable[str]]) -> str:
    """Write the faults that pydantic found, one per line. keys_at: returns the declared keys at a place."""
    # pydantic does not count wrong entries, so it calls a list of them too short as well
    faults = [fault for fault in error.errors() if fault["type"] != "too_short" or not fault["input"]]
    return "\n".join(f"  {_describe(fault, keys_at)}" for fault in faults)


def _describe(fault: Any, keys_at: Callable[[Place], Iterable[str]]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown key; {nearest(str(fault['loc'][-1]), keys_at(fault['loc'][:-1]))}"
    got = f" (got {fault['input']!r})" if not isinstance(fault["input"], dict | list) else ""
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{got}".removeprefix(": ")

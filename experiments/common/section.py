"""What every section of a YAML file is made of: frozen, typed, no undeclared key, faults with the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ctrl.errors import nearest  # rooms import it from here

Place = tuple[int | str, ...]  # keys and indices from the top of the file


class Section(BaseModel):
    """Base of all sections: frozen, and no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def fault_lines(error: ValidationError, keys_at: Callable[[Place], Iterable[str]]) -> str:
    """What pydantic found, one fault a line. keys_at: the declared keys of the section at a place."""
    # entries that are wrong are not counted, so a list of wrong ones is called too short besides
    faults = [fault for fault in error.errors() if fault["type"] != "too_short" or not fault["input"]]
    return "\n".join(f"  {_describe(fault, keys_at)}" for fault in faults)


def _describe(fault: Any, keys_at: Callable[[Place], Iterable[str]]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown key; {nearest(str(fault['loc'][-1]), keys_at(fault['loc'][:-1]))}"
    got = f" (got {fault['input']!r})" if not isinstance(fault["input"], dict | list) else ""
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{got}".removeprefix(": ")

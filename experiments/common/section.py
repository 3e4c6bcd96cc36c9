"""Base class of the sections of a YAML file: frozen, typed, without undeclared keys; faults name the nearest key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

MAX_SEED = 2**32 - 1  # NumPy's seeds are 32 bits
MAX_DRAWS = 10**6  # resamples of the bootstrap; so many take minutes
Place = tuple[int | str, ...]  # keys and indices from the top of the file


def later_field(default: Any, **options: Any) -> Any:
    """Declare a field of a later version: what is written, and so its digest, has it only if it is not the default."""
    return Field(default, exclude_if=lambda value: value == default, **options)


class Section(BaseModel):
    """Base of all sections: frozen, and every key is declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _only_numbers(cls, values: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse true, false and quoted numbers for a number: pydantic would read 1, 0 and the text's number."""
        switches = _no_numbers(cls, values if isinstance(values, dict) else {})
        try:
            made, faults = make(values), list[Any]()
        except ValidationError as error:
            if not switches:
                raise
            faults = error.errors()
        if switches:
            named = {fault["loc"][:1] for fault in faults}
            more = [fault for fault in switches if fault["loc"] not in named]
            raise ValidationError.from_exception_data(cls.__name__, [*faults, *more])
        return made


def _no_numbers(section: type[BaseModel], given: dict[str, Any]) -> list[Any]:
    """Return the faults of numbers that are given as true, false or a text."""
    faults = []
    for name in sorted(given.keys() & section.model_fields.keys()):
        types = number_types(section, name) or {bool, str}
        for one in given[name] if isinstance(given[name], list | tuple) else [given[name]]:
            if type(one) not in types and (said := _no_number(one)):
                fault = {"type": "value_error", "ctx": {"error": ValueError(f"a number is needed, not {said}")}}
                faults.append({**fault, "loc": (name,), "input": given[name]})
                break
    return faults


def _no_number(value: Any) -> str:
    """Say what a value is that pydantic would read as a number; empty for any other."""
    if isinstance(value, bool):
        return "true or false"
    try:
        return "a text: remove its quotes" if isinstance(value, str) and math.isfinite(float(value)) else ""
    except ValueError:  # which pydantic says too
        return ""


def number_types(section: type[BaseModel], name: str) -> set[type]:
    """Return the types of a field that can be a number; empty for other fields."""
    types = set(_types(section.model_fields[name].annotation))
    return types if types & {int, float} else set()


def _types(annotation: Any) -> Iterator[type]:
    """Yield the classes in an annotation: int and str of `tuple[int | str, ...]`."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from _types(part)


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

"""The parts of a method as YAML: `train: {lora: {rank: 16}}`, `loss: [dft, {kl: {weight: 1}}]`, `average: ema`."""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from experiments.common.section import nearest
from experiments.methods.base import Average, LossTerm, Tuning
from experiments.methods.tables import AVERAGES, LOSS_TERMS, TUNINGS

PARTS: Mapping[str, type[BaseModel]] = ChainMap[str, Any](AVERAGES, LOSS_TERMS, TUNINGS)  # with those added later


def read_part(table: Mapping[str, type[BaseModel]], value: Any) -> Any:
    """Build a part from its name, or from {name: its fields}. Raises ValueError, at the field's own place."""
    if isinstance(value, BaseModel):
        return value
    fields = {value: {}} if isinstance(value, str) else value
    if not isinstance(fields, dict) or len(fields) != 1:
        raise ValueError(f"give one name, or one name with its fields, as {_example(table)}, but got {value!r}")
    ((name, given),) = fields.items()
    if name not in table:
        raise ValueError(f"unknown name {name!r}: {nearest(str(name), table)}")
    # as an entry of a mapping, so that a fault's place contains the name
    entry: TypeAdapter[Any] = TypeAdapter(dict[str, table[name]])  # type: ignore[valid-type]
    return entry.validate_python({name: given or {}})[name]


def part_name(part: BaseModel) -> str:
    """Return a part's name in its table."""
    return next(name for name, cls in PARTS.items() if cls is type(part))


def write_part(part: BaseModel) -> dict[str, Any]:
    """Return the plain values that `read_part` reads: {name: its fields}."""
    return {part_name(part): part.model_dump(mode="json")}


def _example(table: Mapping[str, type[BaseModel]]) -> str:
    name, field = next((name, next(iter(cls.model_fields))) for name, cls in table.items() if cls.model_fields)
    return f"{name} or {{{name}: {{{field}: ...}}}}"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict | BaseModel) else value


Train = Annotated[Tuning, BeforeValidator(functools.partial(read_part, TUNINGS))]
Loss = Annotated[LossTerm, BeforeValidator(functools.partial(read_part, LOSS_TERMS))]
Losses = Annotated[tuple[Loss, ...], BeforeValidator(_as_list)]
Averaged = Annotated[Average, BeforeValidator(functools.partial(read_part, AVERAGES))]

"""One name for a whole method (`method: kl`): the table that maps it, its `options` and `control` to the parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError, create_model

from ctrl import ControlConfig
from experiments.common.section import Section, nearest
from experiments.methods.base import Average, LossTerm, Tuning
from experiments.methods.method import Method
from experiments.methods.tables import AVERAGES, LOSS_TERMS, TUNINGS


class NoOptions(Section):
    """The options of a shorthand whose fields are in the arm's `control`."""


@dataclass(frozen=True)
class Shorthand:
    """options: class of the arm's `options`. method: builds the method from them and the arm's `control`."""

    options: type[Section]
    method: Callable[[Any, ControlConfig], Method]


WITHOUT_FIELDS = [
    name for name, cls in TUNINGS.items() if not any(field.is_required() for field in cls.model_fields.values())
]


def _tuning(cls: type[Tuning]) -> Shorthand:
    if cls.in_control:
        return Shorthand(NoOptions, lambda options, control: Method(cls.from_control(control)))
    return Shorthand(cls, lambda options, control: Method(options))


def _loss(cls: type[LossTerm]) -> Shorthand:
    return Shorthand(_on_top(cls), lambda options, control: Method(_trains(options, control), (options,)))


def _average(cls: type[Average]) -> Shorthand:
    return Shorthand(_on_top(cls), lambda options, control: Method(_trains(options, control), (), options))


def _on_top(cls: type[Section]) -> type[Section]:
    """The class with one more field, `trains`: the name of what trains, which then has its default fields."""
    trains: Any = Literal[tuple(WITHOUT_FIELDS)]
    return create_model(cls.__name__, __base__=cls, trains=(trains, "full"))


def _trains(options: Any, control: ControlConfig) -> Tuning:
    return TUNINGS[options.trains].from_control(control)


METHODS: dict[str, Shorthand] = {
    **{name: _tuning(cls) for name, cls in TUNINGS.items()},
    **{name: _loss(cls) for name, cls in LOSS_TERMS.items()},
    **{name: _average(cls) for name, cls in AVERAGES.items()},
}


def from_shorthand(name: str, options: dict[str, Any], control: ControlConfig) -> Method:
    """Build the method that a shorthand names, with fresh state. Raises ValueError."""
    return METHODS[name].method(read_options(name, options), control)


def read_options(name: str, values: dict[str, Any]) -> Section:
    """Check the `options` of a shorthand. Raises ValueError with each unknown or wrong option."""
    options = METHODS[name].options
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_fault(name, options, fault) for fault in error.errors())) from None


def _fault(name: str, options: type[Section], fault: Any) -> str:
    option = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = nearest(option, options.model_fields) if options.model_fields else "it has none"
        return f"unknown option {option!r} of method {name!r}: {known}"
    return f"option {option} of method {name!r}: {fault['msg']} (got {fault['input']!r})"

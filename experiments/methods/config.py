"""The typed YAML of an arm: one way to train and its learning rates."""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from ctrl import ControlConfig
from experiments.common.paths import check_file_name
from experiments.common.section import Section, nearest
from experiments.methods import METHODS, TUNINGS, Method
from experiments.methods.base import Average
from experiments.methods.parts import Averaged, Losses, Train, part_name, write_part
from experiments.methods.shorthands import from_shorthand, read_options
from experiments.methods.tuning import Control, Full

SHORTHAND, PRODUCT = ("method", "options", "control"), ("train", "loss", "average")  # two forms of an arm
MAX_RATE = 1000.0  # a step of any weight by more than this is a mistyped exponent
FORMS = "method (with its options and control) or train, loss and average"


def check_rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Return learning rates. Raises ValueError for two with one name: in tables small ones have four digits."""
    printed = [f"{rate:g}" if rate >= 0.01 or not rate else f"{float(f'{rate:.3e}'):g}" for rate in rates]
    twice = sorted({one for one in printed if printed.count(one) > 1})
    if twice:
        raise ValueError(f"each rate is trained once, but {', '.join(twice)} is there more than once")
    return rates


class ArmConfig(Section):
    """One way to train and the learning rates it is tried at.

    The way is a short name (`method`, with its `options` and `control`), or its parts (`train`, `loss`, `average`).
    """

    name: str = Field(description="of the arm, in tables and folders")
    method: str | None = Field(None, description="short name of a way to train; or give train, loss, average")
    learning_rates: tuple[Annotated[float, Field(ge=0, le=MAX_RATE)], ...] = Field(
        min_length=1, description="each is an arm of its own"
    )
    control: ControlConfig = Field(default_factory=ControlConfig, description="what is expanded; partial: which layers")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own fields")
    replay: float | None = Field(None, ge=0, lt=1, description="this arm's data.replay, if it is not the experiment's")
    train: Train | None = Field(None, description="what trains: a name, or {name: its fields}; full if not given")
    loss: Losses = Field((), description="terms of the loss: a list of names, or of {name: its fields}")
    average: Averaged | None = Field(None, description="average of weights, evaluated and saved; written as in train")

    @model_validator(mode="before")
    @classmethod
    def _structure(cls, values: Any) -> Any:
        """Set control.structure for the methods that fix it: stack and hybrid."""
        tuning = TUNINGS.get(str(values.get("method"))) if isinstance(values, dict) else None
        if tuning is None or not issubclass(tuning, Control) or tuning.structure is None:
            return values
        control = values.get("control") or {}
        fields = control if isinstance(control, dict) else tuning.fields_of(control)
        return {**values, "control": tuning.with_structure(fields)}

    @field_validator("control", mode="before")
    @classmethod
    def _control(cls, value: Any) -> Any:
        return ControlConfig.from_dict(value) if isinstance(value, dict) else value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_file_name(value)

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return check_rates(value)

    @field_validator("method")
    @classmethod
    def _method(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            raise ValueError(f"unknown method {value!r}: {nearest(value, METHODS)}")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> ArmConfig:
        short, parts = (", ".join(k for k in form if k in self.model_fields_set) for form in (SHORTHAND, PRODUCT))
        if short and parts:
            raise ValueError(f"got {short} and {parts}: give either {FORMS}")
        if self.method is None and not parts:
            raise ValueError(f"nothing says how to train: give either {FORMS}")
        self.build()
        return self

    def build(self) -> Method:
        """Build the method, with fresh state. Raises ValueError for a wrong option or parts that exclude each other."""
        if self.method is not None:
            return from_shorthand(self.method, self.options, self.control)
        train, loss, average = copy.deepcopy((self.train, self.loss, self.average))
        return Method(train or Full(), loss, average or Average())

    @property
    def method_name(self) -> str:
        """The short name, or the names of the parts: `lora+kl+ema`."""
        parts = [self.train or Full(), *self.loss, *([self.average] if self.average else [])]
        return self.method or "+".join(part_name(part) for part in parts)

    @property
    def notes(self) -> list[str]:
        """Lines on settings that are given and not read: `control` of a short name that trains no copies."""
        if self.method is None or self.control == ControlConfig() or (tuning := self.build().tuning).in_control:
            return []
        may = "trains" in METHODS[self.method].options.model_fields
        way_out = "; to train copies, set options: {trains: control}" if may else ""
        return [f"arm {self.name}: control is not read, since {self.method} trains {part_name(tuning)}{way_out}"]

    def params(self) -> dict[str, Any]:
        """Return all settings that the method reads, defaults included, as they are logged."""
        if self.method is None:
            return self._product()
        options = {"options": read_options(self.method, self.options).model_dump(mode="json")}
        tuning = self.build().tuning
        control = tuning.config if isinstance(tuning, Control) else self.control  # its structure may be stack or hybrid
        return {"control": control.to_dict(), **options} if tuning.in_control else options

    def to_dict(self) -> dict[str, Any]:
        """Return plain values in the form that was given; keys of the other form are left out."""
        if self.method is None:
            return {**self.model_dump(mode="json", include={"name", "learning_rates", "replay"}), **self._product()}
        return {**self.model_dump(mode="json", exclude={"control", *PRODUCT}), "control": self.control.to_dict()}

    def _product(self) -> dict[str, Any]:
        train = {"train": write_part(self.train or Full())}
        loss = {"loss": [write_part(term) for term in self.loss]} if self.loss else {}
        return {**train, **loss, **({"average": write_part(self.average)} if self.average else {})}

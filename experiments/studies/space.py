"""The search space of a study: one class per kind of dimension, over one field of the config or over named changes.

A dimension draws a plain value, its pick (Optuna stores it), and returns the dotted keys of the config that it sets.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from experiments.common.errors import ConfigError
from experiments.common.section import Section

Scalar = str | int | float | bool | None
MAX_CELLS = 100_000
RATE = re.compile(r"arms\.\d+\.learning_rates(\.\d+)?")


@dataclass(frozen=True)
class Times:
    """A factor: it multiplies the value that a config has, in place of setting it."""

    factor: float

    def of(self, value: Any, dotted: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{dotted!r} is multiplied, but it is {value!r}: set it to a number, or leave out times")
        return float(f"{value * self.factor:.12g}")  # not .30000000000000004


def picks_words(search: Mapping[str, Dimension], picks: Mapping[str, Scalar]) -> str:
    """Return picks as a name: those of `arms` first, then words as they are, and numbers as dimension=value."""
    named = [str(pick) for key, pick in picks.items() if search[key].kind == "arms"]
    others = {key: pick for key, pick in picks.items() if search[key].kind != "arms"}
    short = short_names(search)
    words = [pick if isinstance(pick, str) else f"{short[key]}={_short(pick)}" for key, pick in others.items()]
    return " ".join([*named, *words])


def short_names(dimensions: Iterable[str]) -> dict[str, str]:
    """Return a name for each dimension: the last part of its dotted key, or all of it if two end alike."""
    keys = list(dimensions)
    ends = [key.split(".")[-1] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _short(pick: Scalar) -> str:
    return f"{pick:.3g}" if isinstance(pick, float) else str(pick)


class Choice(Section):
    """One value of a list, without an order: numbers, names, lists or sections."""

    kind: Literal["choice"] = Field("choice", description="kind of dimension")
    path: str | None = Field(None, description="dotted key, if it is not the dimension's name")
    values: tuple[Any, ...] = Field(min_length=1, description="the values")
    times: bool = Field(
        False, description="multiply the value that the config has there, such as a learning rate that each arm has"
    )

    @model_validator(mode="after")
    def _factors(self) -> Choice:
        if self.times and not all(type(value) in (int, float) and 0 < value < math.inf for value in self.values):
            raise ValueError(f"times needs numbers above 0, but got {list(self.values)}")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        picks = self.points()  # 1 and 1.0 are one value; so are a list and its text to Optuna
        if any(value in self.values[:i] or picks[i] in picks[:i] for i, value in enumerate(self.values)):
            raise ValueError(f"values must differ, but got {list(self.values)}")
        return self

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.values)

    def points(self) -> list[Scalar]:
        return [value if isinstance(value, Scalar) else _text(value) for value in self.values]

    def probes(self) -> list[Scalar]:
        """Return the picks with which overrides are checked before the study starts."""
        return self.points()

    def suggest(self, trial: Any, key: str) -> Scalar:
        return trial.suggest_categorical(key, self.points())

    def overrides(self, key: str, pick: Scalar) -> dict[str, Any]:
        value = self.values[self.points().index(pick)]
        return {self.path or key: Times(value) if self.times else value}


class Arms(Section):
    """One of several named arms: name -> dotted keys and their values. Sets `arms.0.name` too."""

    kind: Literal["arms"] = Field("arms", description="kind of dimension")
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> dotted keys and their values; sets `arms.0.name` too"
    )

    @property
    def size(self) -> int:
        return len(self.arms)

    def points(self) -> list[Scalar]:
        return list(self.arms)

    def probes(self) -> list[Scalar]:
        return self.points()

    def suggest(self, trial: Any, key: str) -> Scalar:
        return trial.suggest_categorical(key, self.points())

    def overrides(self, key: str, pick: Scalar) -> dict[str, Any]:
        return {"arms.0.name": pick, **self.arms[str(pick)]}


class Number(Section):
    """A range that includes both ends. log: uniform in the logarithm. step: only low, low + step, ..."""

    path: str | None = Field(None, description="dotted key, if it is not the dimension's name")

    @model_validator(mode="after")
    def _range(self) -> Number:
        low, high, log = (getattr(self, name) for name in ("low", "high", "log"))
        if low >= high:
            raise ValueError(f"low must be below high, but got {low} and {high}")
        if log and low <= 0:
            raise ValueError(f"log needs low > 0, but got {low}")
        step = getattr(self, "step", None)
        if log and step not in (None, 1):
            raise ValueError("log and step cannot be combined: list the values with kind choice")
        if step and step > high - low:
            raise ValueError(f"step={step:g} is beyond the range from {low:g} to {high:g}: lower it")
        return self

    def probes(self) -> list[Scalar]:
        return [getattr(self, "low"), getattr(self, "high")]  # noqa: B009 - declared by the classes below

    def overrides(self, key: str, pick: Scalar) -> dict[str, Any]:
        return {self.path or key: pick}


class Int(Number):
    """Whole numbers from low to high."""

    kind: Literal["int"] = Field("int", description="kind of dimension")
    low: int = Field(description="lowest value")
    high: int = Field(description="highest value")
    step: int = Field(1, ge=1, description="distance of two values")
    log: bool = Field(False, description="draw evenly in the logarithm")

    @property
    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def points(self) -> list[Scalar]:
        return list(range(self.low, self.high + 1, self.step))

    def suggest(self, trial: Any, key: str) -> Scalar:
        return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)


class Float(Number):
    """Real numbers from low to high."""

    kind: Literal["float"] = Field("float", description="kind of dimension")
    low: float = Field(description="lowest value")
    high: float = Field(description="highest value")
    step: float | None = Field(None, gt=0, description="distance of two values; without it any number")
    log: bool = Field(False, description="draw evenly in the logarithm")

    @property
    def size(self) -> int:
        return 0 if self.step is None else int((self.high - self.low) / self.step + 1e-9) + 1

    def points(self) -> list[Scalar]:
        """Return the points of a grid; none without a step."""
        places = 12 - math.floor(math.log10(self.step or 1))  # of the step, which may be 1e-13
        return [
            min(self.high, round(self.low + i * (self.step or 0), places)) for i in range(self.size)
        ]  # not .30000004

    def suggest(self, trial: Any, key: str) -> Scalar:
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


Dimension = Annotated[Choice | Arms | Int | Float, Field(discriminator="kind")]
DIMENSIONS: dict[str, type[Choice | Arms | Int | Float]] = {
    "choice": Choice,
    "arms": Arms,
    "int": Int,
    "float": Float,
}


def sets_rate(key: str, dimension: Choice | Arms | Int | Float) -> bool:
    """Whether a dimension sets the arm's learning rate."""
    return dimension.kind != "arms" and bool(RATE.fullmatch(dimension.path or key))


def grid(search: Mapping[str, Choice | Arms | Int | Float]) -> list[dict[str, Scalar]]:
    """Return all combinations; the last dimension varies fastest. Raises ValueError for no points, or too many."""
    endless = [key for key, dimension in search.items() if not dimension.size]
    if endless:
        raise ValueError(f"a grid needs points, but {', '.join(endless)} has none: give a step, or kind choice")
    if math.prod(dimension.size for dimension in search.values()) > MAX_CELLS:
        raise ValueError(f"the grid has more than {MAX_CELLS} cells: choose another sampler")
    cells = [dimension.points() for dimension in search.values()]
    return [dict(zip(search, picks, strict=True)) for picks in itertools.product(*cells)]


def overrides(search: Mapping[str, Choice | Arms | Int | Float], picks: Mapping[str, Scalar]) -> dict[str, Any]:
    """Return the dotted keys that a trial sets. Named arms come first: other dimensions may change a field of them."""
    named = sorted(search, key=lambda key: search[key].kind != "arms")
    return {dotted: value for key in named for dotted, value in search[key].overrides(key, picks[key]).items()}


def probes(search: Mapping[str, Choice | Arms | Int | Float]) -> Iterator[dict[str, Scalar]]:
    """Yield picks that set each dimension to each of its probes once, while the others have their first probe."""
    first = {key: dimension.probes()[0] for key, dimension in search.items()}
    yield first
    for key, dimension in search.items():
        for pick in dimension.probes()[1:]:
            yield {**first, key: pick}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)

"""Sections of a YAML file name every fault with its place, and the nearest key for a typo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from pydantic import ValidationError, field_validator

import experiments.config
import experiments.measure.config
import experiments.studies.config  # noqa: F401 (the three define all sections)
from experiments.common.errors import ConfigError
from experiments.common.section import Place, Section, fault_lines, number_types


class Part(Section):
    size: int = 1
    names: tuple[int, ...] = ()


class Whole(Section):
    part: Part = Part()


def keys_at(place: Place) -> Iterable[str]:
    return Part.model_fields if place == ("part",) else Whole.model_fields


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for cls in of.__subclasses__():
        yield cls
        yield from sections(cls)


def takes_a_switch(cls: type[Section], name: str, value: object) -> bool:
    """Whether a field accepts true for a number."""
    try:
        cls.model_validate({name: value})
    except ValidationError as error:
        return all(fault["loc"][0] != name for fault in error.errors() if fault["loc"])
    return True


def test_no_number_of_any_section_is_given_as_a_switch() -> None:
    fields = {(cls, name) for cls in sections() for name in cls.model_fields if number_types(cls, name) - {bool, str}}
    numbers = [(cls, name) for cls, name in fields if bool not in number_types(cls, name)]
    assert len(numbers) > 80
    wrong = [
        (cls.__name__, name) for cls, name in numbers for value in (True, [True]) if takes_a_switch(cls, name, value)
    ]
    assert not wrong


def test_faults_have_their_place_and_the_nearest_key() -> None:
    with pytest.raises(ValidationError, match="3 validation errors") as caught:
        Whole.model_validate({"part": {"sise": 2, "size": "x"}, "other": 1})
    assert fault_lines(caught.value, keys_at).splitlines() == [
        "  part.size: Input should be a valid integer, unable to parse string as an integer (got 'x')",
        "  part.sise: unknown key; did you mean 'size'? known: size, names",
        "  other: unknown key; known: part",
    ]


def test_a_section_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Part().size = 2


def test_pydantic_collects_config_errors() -> None:
    class Part(Section):
        size: int

        @field_validator("size")
        @classmethod
        def _odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ConfigError(f"size must be odd, but got {value}")
            return value

    with pytest.raises(ValidationError, match="size must be odd, but got 2"):
        Part(size=2)

"""Sections of a YAML file name every fault with its place, and the nearest key for a typo."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from pydantic import ValidationError, field_validator

from experiments.common.errors import ConfigError
from experiments.common.section import Place, Section, fault_lines


class Part(Section):
    size: int = 1
    names: tuple[int, ...] = ()


class Whole(Section):
    part: Part = Part()


def keys_at(place: Place) -> Iterable[str]:
    return Part.model_fields if place == ("part",) else Whole.model_fields


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

"""An arm's own YAML: what is refused, and what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.methods.config import ArmConfig


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"method": "full"}, ["arm x: control is not read, since full trains full"]),
        ({"method": "lora"}, ["arm x: control is not read, since lora trains lora"]),
        (
            {"method": "kl"},
            ["arm x: control is not read, since kl trains full; to train copies, set options: {trains: control}"],
        ),
        ({"method": "kl", "options": {"trains": "control"}}, []),
        ({"method": "control"}, []),
        ({"method": "partial"}, []),
        ({"method": "full", "control": {}}, []),
    ],
)
def test_a_section_that_is_not_read_is_said(arm: dict[str, Any], said: list[str]) -> None:
    assert ArmConfig(**{"name": "x", "learning_rates": [1e-4], "control": {"layers": 2}, **arm}).notes == said


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([1e-3, 1e-3], r"each rate is trained once, but 0\.001 is there more than once"),
        ([1e-3, 1.0000001e-3], r"0\.001 is there more than once"),
        ([math.nan], r"learning_rates\.0: Input should be a finite number"),
        ([-1e-3], r"learning_rates\.0: Input should be greater than or equal to 0"),
        ([1e30], r"learning_rates\.0: Input should be less than or equal to 1000"),
        ([True], r"learning_rates: a number is needed"),
    ],
)
def test_learning_rates(rates: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"name": "x", "arms": [{"name": "a", "method": "full", "learning_rates": rates}]})


@pytest.mark.parametrize("name", ["mse/lerp", "../x", "..", ".", ".x", "", " ", "a ", "a\nb", "a\tb", "a\0b", "a\\b",
                                  "a\x1b[31m", "a\u202eb", "x" * 300])  # fmt: skip
def test_a_name_that_becomes_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"a folder gets this name"):
        parse_config({"name": "x", "arms": [{"name": name, "method": "full", "learning_rates": [1e-3]}]})


def test_other_names_stay() -> None:
    for name in ("rank 8, \u03b1=16: 50 % %", "8e-4", "\u6570\u5b66", "a.b-c_d", "mse+lerp"):
        parse_config({"name": "x", "arms": [{"name": name, "method": "full", "learning_rates": [1e-3]}]})

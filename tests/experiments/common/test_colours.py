"""One colour for each method in all pictures, and a shade for each learning rate."""

from __future__ import annotations

import re

import pytest

from experiments.common.colours import METHODS, PALETTE, arm_colour


def test_a_method_has_one_colour_and_lower_rates_are_lighter() -> None:
    shades = [arm_colour("control", rate) for rate in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert shades[0] == "#029e73"
    assert [sum(bytes.fromhex(shade[1:])) for shade in shades] == sorted(sum(bytes.fromhex(s[1:])) for s in shades)
    assert len(set(shades)) == 4
    assert len({arm_colour(method, 1e-3) for method in METHODS}) == len(METHODS) == len(PALETTE)


@pytest.mark.parametrize("rate", [0.0, 1e-9, 5.0])
def test_any_method_and_rate_has_a_colour(rate: float) -> None:
    assert re.fullmatch("#[0-9a-f]{6}", arm_colour("control, kl 0.5", rate))
    assert arm_colour("my method", rate) == arm_colour("my method", rate)

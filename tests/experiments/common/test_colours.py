"""One colour for each method in all pictures, and a shade for each learning rate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import experiments
from experiments.common.colours import METHODS, PALETTE, UNKNOWN, arm_colour, line_colours


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


def test_lines_have_the_colour_of_their_method_unless_all_are_of_one() -> None:
    mixed = [("a", "full", 1e-3), ("b", "control", 1e-4), ("c", "", 0.0)]
    assert line_colours(mixed) == [arm_colour("full", 1e-3), arm_colour("control", 1e-4), UNKNOWN]
    alone = [("a", "control", 1e-3), ("a", "control", 1e-4), ("b", "control", 1e-3)]
    assert len(set(line_colours(alone))) == 3
    assert line_colours(alone[:2]) == [arm_colour("control", 1e-3), arm_colour("control", 1e-4)]  # one arm
    assert line_colours([("x", "", 0.0), ("y", "", 0.0)]) == list(PALETTE[:2])


def test_no_other_file_chooses_a_palette() -> None:
    """A figure that takes colours from a palette of its own draws a method in another colour than the others."""
    room = Path(experiments.__file__).parent
    own = re.compile(r"color_palette\(\"(?!viridis)|palette=\"|#(0173b2|de8f05|029e73|d55e00|0072b2)", re.IGNORECASE)
    found = [str(path) for path in room.rglob("*.py") if path.name != "colours.py" and own.search(path.read_text())]
    assert not found

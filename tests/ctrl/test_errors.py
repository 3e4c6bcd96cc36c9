"""An unknown name is answered with the nearest, or with all that are known."""

from __future__ import annotations

import pytest

from ctrl.config import ControlConfig
from ctrl.errors import unknown_name


def test_a_name_near_nothing_lists_what_is_known() -> None:
    assert unknown_name("method", "qqq", ["lerp", "slerp"]) == "unknown method 'qqq': known: lerp, slerp"


def test_is_a_value_error() -> None:
    """So that callers who do not know ctrl catch it too."""
    with pytest.raises(ValueError, match="layers=0"):
        ControlConfig(layers=0)

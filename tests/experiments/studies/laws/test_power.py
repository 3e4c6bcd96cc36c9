"""The power law of one loss: fitted from any start, and the largest ratio below a limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.studies.laws.power import PowerLaw, power_law


@settings(max_examples=60, deadline=None)
@given(
    a=st.floats(0.01, 2) | st.floats(-2, -0.01),
    s=st.floats(0.1, 4) | st.floats(-4, -0.1),
    most=st.floats(0.0, 6.0),
)
def test_largest_ratio_is_the_last_point_of_a_fine_grid_below_the_limit(a: float, s: float, most: float) -> None:
    law = PowerLaw(a, s, 0.0, 2.5, 1.0)
    grid = np.linspace(1e-3, 1, 4000)
    below = grid[law(grid, 1.0) <= most]
    found = law.largest_ratio(most, 1.0)
    if len(below):
        assert found == pytest.approx(below[-1], abs=3e-4)
    else:
        assert np.isnan(found) or found <= 1.01e-3


def test_a_start_on_the_wrong_side_does_not_hide_the_law() -> None:
    """Rising by a > 0, s > 0 or by a < 0, s < 0: both signs are searched."""
    ratio = np.array((0.2, 0.35, 0.5, 0.75, 0.9, 1.0))
    loss = -0.1 * ratio**-0.8 + 3.0
    law = power_law(ratio, np.ones(6), loss)
    assert (law.a, law.s, law.b) == pytest.approx((-0.1, -0.8, 3.0), rel=1e-2)

"""Figures of a trajectory against geometry done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.scorecard import (
    envelope_area,
    hypervolume,
    matched_retention,
    stability_gap,
)
from experiments.scorecard.bootstrap import Array, estimate
from experiments.scorecard.trajectory import (
    Trajectory,
    drawn_trajectory,
    harmonic_averages,
    trajectory_figures,
    value_at,
)
from tests.helpers.planted_run import base_records, trained


def column(*values: float) -> Array:
    """One trajectory without draws: (points, 1)."""
    return np.array(values)[:, None]


def path(gain: Array, retention: Array, forgetting: Array | None = None) -> Trajectory:
    fall = 1 - retention if forgetting is None else forgetting
    return Trajectory(tuple(range(0, 10 * len(gain), 10)), gain, retention, fall)


def test_retention_is_interpolated_where_the_gain_is_first_reached() -> None:
    gain, retention = column(0, 0.2, 0.4, 0.1), column(1, 0.9, 0.7, 0.5)
    assert value_at(gain, retention, 0.3) == pytest.approx(0.8)
    assert value_at(gain, retention, 0.1) == pytest.approx(0.95)
    assert value_at(gain, retention, 0.0) == pytest.approx(1.0)
    assert np.isnan(value_at(gain, retention, 0.5)).all()


def test_each_draw_is_read_where_its_own_gains_reach_the_target() -> None:
    """Columns: as observed; reached one point earlier; one point later; never, so at its highest gain."""
    gain = np.array([[0, 0, 0, 0], [0.3, 0.5, 0.2, 0.1], [0.5, 0.5, 0.3, 0.35], [0.5, 0.6, 0.5, 0.2]])
    retention = np.broadcast_to(np.array([1, 0.9, 0.7, 0.5])[:, None], gain.shape)
    assert value_at(gain, retention, 0.4) == pytest.approx([0.8, 0.92, 0.6, 0.7])


def test_matched_gain_is_the_highest_that_all_reach() -> None:
    slow, fast = path(column(0, 0.3), column(1, 0.97)), path(column(0, 0.6), column(1, 0.9))
    gain, found = matched_retention({"slow": slow, "fast": fast})
    assert gain == pytest.approx(0.3)
    assert found["slow"] == pytest.approx(0.97)
    assert found["fast"] == pytest.approx(0.95)


def test_matched_retention_of_records_has_an_interval_around_its_point() -> None:
    rng = np.random.default_rng(0)
    base = base_records(rng, 300)
    arms = {
        name: drawn_trajectory(base, {10: trained(rng, base, lost / 2, 0.3), 20: trained(rng, base, lost, 0.6)}, 400)
        for name, lost in (("mild", 0.05), ("hard", 0.4))
    }
    _, found = matched_retention(arms)
    difference = estimate(found["mild"] - found["hard"])
    assert difference.low is not None
    assert 0.1 < difference.low < difference.value


def test_the_harmonic_average_knows_that_the_highest_gain_is_uncertain_too() -> None:
    """Two arms of equal gain .4 +- .1, whose errors are independent: their ratio varies more than one gain."""
    rng = np.random.default_rng(0)
    gains = {name: np.concatenate([[0.4], rng.normal(0.4, 0.05, 4000)]) for name in "ab"}
    kept = np.ones((2, 4001))
    paths = {name: path(np.stack([np.zeros(4001), gain]), kept) for name, gain in gains.items()}
    found = {name: estimate(values) for name, values in harmonic_averages(paths, list("ab")).items()}
    assert [one.value for one in found.values()] == [1, 1]
    alone = estimate(2 * gains["b"] / (gains["b"] + 0.4))
    assert found["a"].low == pytest.approx(alone.low, abs=0.01)  # that of its own gain: another may be the highest
    assert (1 - found["b"].low) > 1.25 * (1 - alone.low)  # type: ignore[operator]
    assert harmonic_averages(paths, []) == {}


def test_area_is_the_mean_height_of_the_envelope() -> None:
    gain, retention = column(0, 0.4), column(1, 0.6)
    assert envelope_area(gain, retention, 0.4) == pytest.approx(0.8, abs=1e-6)
    assert envelope_area(gain, retention, 0.2) == pytest.approx(0.9, abs=1e-6)
    back = (column(0, 0.4, 0.0), column(1, 0.6, 0.2))  # the way back lies below and does not count
    assert envelope_area(*back, 0.4) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(envelope_area(gain, retention, 0.5)).all()
    with pytest.raises(ValueError, match="most must be a gain above 0, but got 0"):
        envelope_area(gain, retention, 0)


def test_a_draw_that_falls_short_of_the_gain_takes_its_last_retention() -> None:
    gain = np.array([[0.0, 0.0], [0.4, 0.2]])
    retention = np.array([[1.0, 1.0], [0.6, 0.6]])
    assert envelope_area(gain, retention, 0.4)[1] == pytest.approx((0.8 + 0.6) / 2, abs=1e-6)


@given(st.lists(st.tuples(st.floats(-0.5, 1), st.floats(0, 1.2)), min_size=1, max_size=6), st.floats(0, 0.5))
def test_hypervolume_is_the_dominated_area_counted_on_a_grid(points: list[tuple[float, float]], low: float) -> None:
    gain, retention = (np.array(values)[:, None] for values in zip(*points, strict=True))
    x, y = np.meshgrid((np.arange(200) + 0.5) / 200, low + (np.arange(200) + 0.5) / 200 * 1.2)
    inside = np.zeros_like(x, dtype=bool)
    for g, r in points:
        inside |= (x <= g) & (y <= r)
    assert hypervolume(gain, retention, low)[0] == pytest.approx(inside.mean() * 1.2, abs=0.02)


def test_the_interval_of_an_area_does_not_go_below_nothing() -> None:
    """An arm that gained nothing: what is subtracted for the luck of the highest point is more than there is."""
    rng = np.random.default_rng(0)
    gain = np.concatenate([np.zeros((3, 1)), rng.normal(0, 0.2, (3, 400))], axis=1)
    gain[0] = 0
    path = Trajectory((0, 1, 2), gain, np.ones_like(gain), np.zeros_like(gain))
    found = estimate(trajectory_figures({"a": path})[1]["a"]["hypervolume"])
    assert (found.value, found.low) == (0, 0)
    assert found.high is not None
    assert found.high > 0.2


def test_stability_gap_is_the_deepest_fall_and_the_step_of_recovery() -> None:
    steps = np.array([0.0, 0.02, 0.10, 0.04, -0.01, 0.03])
    fall = np.stack([steps, *[steps + 0.01 * k for k in range(-50, 51)]], axis=1)
    depth, recovered = stability_gap(path(fall, 1 - fall, fall))
    assert depth.value == pytest.approx(0.10)
    assert recovered == 40
    never, step = stability_gap(path(fall[:4], 1 - fall[:4], fall[:4]))
    assert (never.value, step) == (pytest.approx(0.10), None)
    assert stability_gap(path(fall, 1 - fall, np.zeros_like(fall)))[0].value == 0


def test_a_trajectory_needs_both_sides() -> None:
    base = [r for r in base_records(np.random.default_rng(0), 20) if r.suite == "kept"]
    with pytest.raises(ValueError, match="needs records of the suites 'new' and 'kept'"):
        drawn_trajectory(base, {10: base}, 100)

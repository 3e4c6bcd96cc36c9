"""Trajectories, streams and seeds against geometry done by hand and restatements in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.records import Record
from experiments.scorecard import (
    envelope_area,
    hypervolume,
    matched_retention,
    over_seeds,
    scorecard,
    stability_gap,
    stream,
    stream_figures,
    stream_matrix,
)
from experiments.scorecard.bootstrap import Array, estimate
from experiments.scorecard.seeds import resample_seeds
from experiments.scorecard.trajectory import Trajectory, drawn_trajectory, retention_at
from tests.helpers.simulated import base_records, trained


def column(*values: float) -> Array:
    """One trajectory without draws: (points, 1)."""
    return np.array(values)[:, None]


def path(gain: Array, retention: Array, forgetting: Array | None = None) -> Trajectory:
    fall = 1 - retention if forgetting is None else forgetting
    return Trajectory(tuple(range(0, 10 * len(gain), 10)), gain, retention, fall)


def test_retention_is_interpolated_where_the_gain_is_first_reached() -> None:
    gain, retention = column(0, 0.2, 0.4, 0.1), column(1, 0.9, 0.7, 0.5)
    assert retention_at(gain, retention, 0.3) == pytest.approx(0.8)
    assert retention_at(gain, retention, 0.1) == pytest.approx(0.95)
    assert retention_at(gain, retention, 0.0) == pytest.approx(1.0)
    assert np.isnan(retention_at(gain, retention, 0.5)).all()


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


def test_stream_figures_match_their_definitions_in_loops() -> None:
    r = np.random.default_rng(4).random((5, 4))  # row 0: untrained; R[t, j] is r[t, j - 1]
    t = 4
    found = stream_figures(r)
    assert found["stream_op"] == pytest.approx(sum(r[t, j - 1] for j in range(1, t + 1)) / t)
    assert found["stream_bwt"] == pytest.approx(sum(r[t, j - 1] - r[j, j - 1] for j in range(1, t)) / (t - 1))
    best = [max(r[late, j - 1] - r[t, j - 1] for late in range(1, t)) for j in range(1, t)]
    assert found["stream_f"] == pytest.approx(sum(best) / (t - 1))
    assert found["stream_fwt"] == pytest.approx(sum(r[j - 1, j - 1] - r[0, j - 1] for j in range(2, t + 1)) / (t - 1))
    with pytest.raises(ValueError, match=r"but got shape \(4, 4\)"):
        stream_figures(r[1:])


def answers(rng: np.random.Generator, rates: dict[str, float]) -> list[Record]:
    return [
        Record("kept", t, "chat", str(i), correct=int(rng.random() < a)) for t, a in rates.items() for i in range(400)
    ]


def test_a_stream_of_records_has_the_figures_of_its_accuracies() -> None:
    rng = np.random.default_rng(5)
    rates = ({"a": 0.2, "b": 0.3}, {"a": 0.9, "b": 0.4}, {"a": 0.6, "b": 0.8})
    stages = [answers(rng, r) for r in rates]
    found = stream(stages, ["a", "b"], draws=400)
    assert found["stream_bwt"].value == pytest.approx(-0.3, abs=0.1)
    assert found["stream_f"].value == pytest.approx(-found["stream_bwt"].value)  # two tasks: the best is the first
    assert found["stream_fwt"].value == pytest.approx(0.1, abs=0.1)
    assert all(e.low is not None and e.high is not None and e.low < e.value < e.high for e in found.values())
    observed = stream_matrix(stages, ["a", "b"], draws=100)[..., 0]
    for t, stage in enumerate(stages):
        for j, task in enumerate("ab"):
            assert observed[t, j] == np.mean([r.correct or 0 for r in stage if r.task == task])
    text = Record("new", "c", "nll", "x", value=1.0, tokens=9)
    with pytest.raises(
        ValueError, match="answers and texts have no common scale, but 'c' is a text and others are not"
    ):
        stream([[*stage, text] for stage in [*stages, stages[0]]], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"2 tasks need 3 stages, the untrained model first: got 2"):
        stream(stages[1:], ["a", "b"])
    with pytest.raises(ValueError, match="task 'b' was not measured on the same items at every stage"):
        stream([*stages[:2], stages[2][:500]], ["a", "b"])


def test_seeds_widen_the_interval_and_their_mean_is_the_figure() -> None:
    rng = np.random.default_rng(6)
    base = base_records(rng, 300)
    runs = [(base, trained(rng, base, lost, 0.5)) for lost in (0.0, 0.1, 0.3)]
    found = over_seeds(runs, draws=500)["forgetting"]
    each = [scorecard(*run, draws=500)["forgetting"] for run in runs]
    assert found.value == pytest.approx(np.mean([e.value for e in each]))
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > max((e.high or 0) - (e.low or 0) for e in each)
    with pytest.raises(ValueError, match=r"from 2 on .* but got 1"):
        over_seeds(runs[:1])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_coverage_over_seeds_that_differ_far_more_than_items(count: int) -> None:
    """The hard case for few seeds: seeds N(0, 1), no item noise. Where items dominate, coverage is theirs."""
    rng, hits, runs = np.random.default_rng(7), 0, 1000
    for seed in range(runs):
        values = np.repeat(rng.normal(size=(count, 1)), 401, axis=1)
        found = estimate(resample_seeds(values, seed))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / runs <= 0.97, hits / runs


def test_differences_over_seeds_are_those_of_the_paired_seeds() -> None:
    """An effect that is the same in every seed is certain, however far the seeds lie apart."""
    first = np.repeat(np.random.default_rng(8).normal(size=(3, 1)), 401, axis=1)
    difference = resample_seeds(first + 0.1, 0) - resample_seeds(first, 0)
    assert difference == pytest.approx(0.1)

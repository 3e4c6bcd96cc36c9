"""Axes for values that are far apart."""

from __future__ import annotations

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reporting.plots.decades import far_apart, log_axis


@pytest.mark.parametrize(
    ("values", "far"),
    [([0.1, 1.0], True), ([0.5, 12], True), ([0.2, 1.0], False), ([0, 5], False), ([-1, 20], False), ([], False)],
)
def test_values_a_decade_apart_are_far_apart_if_all_have_a_logarithm(values: list[float], far: bool) -> None:
    assert far_apart(values) is far


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_log_axis_has_plain_numbers_at_the_decades(which: str) -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0.05, 20], [0.05, 20])
    log_axis(axes, which)  # type: ignore[arg-type]
    figure.draw_without_rendering()
    axis = axes.xaxis if which == "x" else axes.yaxis
    assert (axes.get_xscale(), axes.get_yscale()).count("log") == 1
    texts = [label.get_text() for label in axis.get_majorticklabels()]
    assert {"0.1", "1", "10"} <= set(texts)
    assert not any("$" in text for text in texts)
    assert all(math.log10(place) % 1 == pytest.approx(0) for place in axis.get_majorticklocs())
